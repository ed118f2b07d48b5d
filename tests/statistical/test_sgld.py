"""SGLD on a conjugate model: the law of the discretised chain, to the last per cent."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from cases.conjugate import CENTRE, CURVATURE, NOISE, PROBABILITY, B, Y, conjugate, probability
from exact import mcse_of_mean, stationary_variance, z_score

import ppl_fe as fe


def draws(kernel: fe.Kernel, size: int | None, num_draws: int = 500) -> xr.DataTree:
    return fe.sample(
        kernel,
        Y,
        size,
        num_samples=num_draws,
        warmup_steps=500,
        thinning=2,
        num_chains=32,
        compile="traced",
        progress_bar=False,
    )


def scores(tree: xr.DataTree, variance: np.ndarray) -> tuple[list[float], list[float]]:
    """z scores of the means and of the variances about the exact centre."""
    values = tree.posterior["mean"].values.astype(np.float64)
    of_means, of_variances = [], []
    for k in range(2):
        x = values[..., k]
        square = (x - CENTRE[k]) ** 2
        of_means.append(z_score(x.mean(), CENTRE[k], mcse_of_mean(x)))
        of_variances.append(z_score(square.mean(), variance[k], mcse_of_mean(square)))
    return of_means, of_variances


@pytest.mark.parametrize(
    ("size", "temperature"),
    [
        (B, 2.5),
        pytest.param(B, 1.0, marks=pytest.mark.thorough),
        pytest.param(None, 2.5, marks=pytest.mark.thorough),
        pytest.param(None, 1.0, marks=pytest.mark.thorough),
    ],
)
def test_mean_and_variance_of_the_discretised_chain(size: int | None, temperature: float) -> None:
    step_size = 0.04  # eps a = 1.24 along the stiff coordinate: a bias of 45 %
    kernel = fe.SGLD(conjugate, step_size=step_size, temperature=temperature)
    noise = NOISE if size else 0.0 * NOISE
    variance = stationary_variance(CURVATURE, 1.0, 0.0, step_size, noise, temperature)
    tree = draws(kernel, size)
    of_means, of_variances = scores(tree, variance)
    assert max(map(abs, of_means + of_variances)) < 4
    # Sharp enough: the law at a vanishing step is told from that of this one.
    assert max(map(abs, scores(tree, temperature / CURVATURE)[1])) > 10


@pytest.mark.thorough
def test_the_full_data_estimator_has_no_noise() -> None:
    step_size = 0.04
    kernel = fe.SGLD(conjugate, step_size=step_size, gradient="full_data")
    variance = stationary_variance(CURVATURE, 1.0, 0.0, step_size)
    of_means, of_variances = scores(draws(kernel, 4), variance)  # 4 does not divide 30
    assert max(map(abs, of_means + of_variances)) < 4


@pytest.mark.thorough
def test_a_probability_on_its_logit_scale() -> None:
    tree = fe.sample(
        fe.SGLD(probability, step_size=0.02),
        num_samples=500,
        warmup_steps=1000,
        thinning=5,
        num_chains=32,
        compile="traced",
        progress_bar=False,
    )
    p = tree.posterior["p"].values.astype(np.float64)
    mean, variance = PROBABILITY
    square = (p - mean) ** 2
    assert abs(z_score(p.mean(), mean, mcse_of_mean(p))) < 4
    # The bias of the step, eps a/4 with a = 25 mean (1 - mean) on the logit scale of Beta(16, 9).
    bias = 0.02 * 25 * mean * (1 - mean) / 4
    error = np.hypot(mcse_of_mean(square), bias * variance)
    assert bias < 0.03
    assert abs(z_score(square.mean(), variance, float(error))) < 4
