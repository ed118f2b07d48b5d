"""The linear-Gaussian closed forms against a grid, the evidence identity and its derivative."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import multivariate_normal, norm

from .linear_gaussian import checkpoints_with_gaps, linear_gaussian_posterior
from .quadratic import llc

Array = NDArray[np.float64]


def _data(n: int, d: int, seed: int = 30) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((n, d)) @ np.diag(np.linspace(0.3, 1.5, d))
    return inputs, inputs @ rng.standard_normal(d) + rng.standard_normal(n)


@pytest.mark.parametrize("beta", [1.0, 1.0 / math.log(40)])
def test_every_quantity_against_a_grid(beta: float) -> None:
    inputs, targets = _data(40, 2)
    n, gamma, anchor = 40, 3.0, np.array([1.5, -2.0])
    exact = linear_gaussian_posterior(inputs, targets, anchor, gamma=gamma, beta=beta)
    # A grid of 12 standard deviations about the mean: the trapezoid rule is exact on it.
    reach = 12.0 * np.sqrt(np.diag(exact.covariance))
    axes = [np.linspace(exact.mean[i] - reach[i], exact.mean[i] + reach[i], 401) for i in (0, 1)]
    w = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    cell = math.prod(axis[1] - axis[0] for axis in axes)
    losses = 0.5 * np.mean((targets - w @ inputs.T) ** 2, axis=1) + 0.5 * math.log(2.0 * math.pi)
    offsets = np.sum((w - anchor) ** 2, axis=1)
    log_prior = math.log(gamma / (2.0 * math.pi)) - 0.5 * gamma * offsets
    weight = np.exp(-n * beta * losses + log_prior) * cell
    normaliser = weight.sum()
    weight = weight / normaliser
    assert exact.free_energy == pytest.approx(-math.log(normaliser), abs=1e-9)
    np.testing.assert_allclose(exact.mean, weight @ w, rtol=1e-9)
    centred = w - exact.mean
    np.testing.assert_allclose(exact.covariance, (weight * centred.T) @ centred, rtol=1e-8)
    assert exact.expected_loss == pytest.approx(weight @ losses, rel=1e-10)
    assert exact.wbic == pytest.approx(n * (weight @ losses), rel=1e-10)
    at_anchor = -np.mean(norm.logpdf(targets, inputs @ anchor))
    assert exact.anchor_loss == pytest.approx(at_anchor, rel=1e-12)
    assert exact.llc == pytest.approx(n * beta * (weight @ losses - at_anchor), rel=1e-9)


GAMMAS = [np.full(5, 0.7), np.array([0.2, 5.0, 1.0, 40.0, 0.7])]


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_free_energy_is_the_marginal_likelihood(beta: float, gamma: Array) -> None:
    # exp(-n beta L_n(w)) is N(y; Xw, I/beta) up to a constant, and w_i ~ N(w*_i, 1/gamma_i).
    inputs, targets = _data(30, 5)
    anchor = np.linspace(-1.0, 2.0, 5)
    exact = linear_gaussian_posterior(inputs, targets, anchor, gamma=gamma, beta=beta)
    covariance = np.eye(30) / beta + inputs @ np.diag(1 / gamma) @ inputs.T
    log_marginal = multivariate_normal.logpdf(targets, inputs @ anchor, covariance)
    constant = 15.0 * beta * math.log(2.0 * math.pi) - 15.0 * math.log(2.0 * math.pi / beta)
    assert exact.free_energy == pytest.approx(-log_marginal + constant, rel=1e-10)


def test_wbic_is_the_derivative_of_the_free_energy() -> None:
    inputs, targets = _data(50, 4)
    anchor, step = np.array([0.5, -1.0, 2.0, 0.0]), 1e-4

    def free_energy(beta: float) -> float:
        return linear_gaussian_posterior(inputs, targets, anchor, gamma=2.0, beta=beta).free_energy

    slope = (free_energy(0.25 + step) - free_energy(0.25 - step)) / (2.0 * step)
    exact = linear_gaussian_posterior(inputs, targets, anchor, gamma=2.0, beta=0.25)
    assert exact.wbic == pytest.approx(slope, rel=1e-6)


def test_at_the_minimum_the_llc_is_that_of_a_quadratic() -> None:
    inputs, targets = _data(60, 4)
    minimum = np.linalg.lstsq(inputs, targets, rcond=None)[0].astype(np.float64)
    beta = 1.0 / math.log(60)
    exact = linear_gaussian_posterior(inputs, targets, minimum, gamma=5.0, beta=beta)
    h = np.linalg.eigvalsh(inputs.T @ inputs / 60)
    assert exact.llc == pytest.approx(llc(h, 60 * beta, 5.0), rel=1e-9)
    off = linear_gaussian_posterior(inputs, targets, minimum + 3.0, gamma=5.0, beta=beta)
    assert off.llc < 0.0


@pytest.mark.parametrize("gamma", [1.0, 100.0])
def test_checkpoints_are_far_apart_in_both_orders(gamma: float) -> None:
    inputs, targets = _data(500, 6)
    anchors = checkpoints_with_gaps(inputs, targets, gamma=gamma)
    assert anchors.shape == (8, 6)
    wbic, free_energy = np.empty(8), np.empty(8)
    for k, anchor in enumerate(anchors):
        tempered, full = (
            linear_gaussian_posterior(inputs, targets, anchor, gamma=gamma, beta=beta)
            for beta in (1.0 / math.log(500), 1.0)
        )
        wbic[k], free_energy[k] = tempered.wbic, full.free_energy
    gaps = np.stack([np.diff(wbic), np.diff(free_energy)])
    assert (gaps > 20.0 - 1e-6).all()
    # No further than needed: each anchor meets one of the two gaps exactly.
    np.testing.assert_allclose(gaps.min(axis=0), 20.0, atol=1e-6)
    np.testing.assert_allclose(
        anchors[0], np.linalg.lstsq(inputs, targets, rcond=None)[0], atol=1e-9
    )


def test_checkpoints_follow_the_gap_the_number_and_the_seed() -> None:
    inputs, targets = _data(200, 3)
    anchors = checkpoints_with_gaps(inputs, targets, gamma=10.0, num_checkpoints=4, gap=5.0)
    again = checkpoints_with_gaps(inputs, targets, gamma=10.0, num_checkpoints=4, gap=5.0)
    other = checkpoints_with_gaps(inputs, targets, gamma=10.0, num_checkpoints=4, gap=5.0, seed=1)
    assert anchors.shape == (4, 3)
    np.testing.assert_array_equal(anchors, again)
    assert not np.allclose(anchors[1:], other[1:])


def test_bad_arguments_are_refused() -> None:
    inputs, targets = _data(10, 2)
    with pytest.raises(ValueError, match="anchor"):
        linear_gaussian_posterior(inputs, targets, np.zeros(3), gamma=1.0, beta=1.0)
    with pytest.raises(ValueError, match="beta"):
        linear_gaussian_posterior(inputs, targets, np.zeros(2), gamma=1.0, beta=0.0)
    with pytest.raises(np.linalg.LinAlgError):
        checkpoints_with_gaps(np.ones((10, 2)), targets, gamma=1.0)
