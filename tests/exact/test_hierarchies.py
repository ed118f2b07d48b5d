"""Hierarchies by quadrature against closed forms, and against weighted draws of the prior."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from exact.hierarchies import by_importance, group_hierarchy, horseshoe

Array = NDArray[np.float64]

Y, SIGMA = np.array([28.0, 8.0, -3.0]), np.array([15.0, 10.0, 16.0])
MU = np.linspace(-25, 35, 41)
TAU = np.exp(np.linspace(np.log(0.02), np.log(200), 60))


def log_normal(x: Array, mean: Array, sd: Any) -> Array:
    found: Array = -0.5 * ((x - mean) / sd) ** 2 - np.log(sd)
    return found


def log_prior(mu: Array, tau: Array) -> Array:
    found: Array = -0.5 * (mu / 5) ** 2 - np.log1p((tau / 5) ** 2)
    return found


def test_effects_integrated_on_a_grid_are_those_of_the_normal_s_closed_form() -> None:
    found = group_hierarchy(lambda theta: log_normal(Y, theta, SIGMA), log_prior, MU, TAU)
    mu, tau = np.meshgrid(MU, TAU)
    total = np.sqrt(SIGMA**2 + tau[..., None] ** 2)
    logs = log_normal(Y, mu[..., None], total).sum(-1) + log_prior(mu, tau) + np.log(tau)
    joint = np.exp(logs - logs.max())
    joint /= joint.sum()
    precision = 1 / SIGMA**2 + 1 / tau[..., None] ** 2
    theta = (Y / SIGMA**2 + mu[..., None] / tau[..., None] ** 2) / precision
    mean = (joint[..., None] * theta).sum((0, 1))
    square = (joint[..., None] * (theta**2 + 1 / precision)).sum((0, 1))
    np.testing.assert_allclose(found["mu"].mean, (joint * mu).sum(), atol=1e-3)
    np.testing.assert_allclose(found["tau"].mean, (joint * tau).sum(), rtol=1e-3)
    np.testing.assert_allclose(found["theta"].mean, mean, atol=0.02)
    np.testing.assert_allclose(found["theta"].sd, np.sqrt(square - mean**2), rtol=0.003)


def test_the_horseshoe_is_that_of_weighted_draws_of_its_prior() -> None:
    slopes, error, scale = np.array([2.0, 0.1]), 0.5, 0.3
    found = horseshoe(slopes, error, scale)
    generator = np.random.default_rng(0)
    tau = scale * np.abs(generator.standard_cauchy(1_000_000))
    beta = (
        tau[:, None]
        * np.abs(generator.standard_cauchy((len(tau), 2)))
        * generator.standard_normal((len(tau), 2))
    )
    weights = np.exp(log_normal(slopes, beta, error).sum(-1))
    weights /= weights.sum()
    mean = weights @ beta
    errors = np.sqrt(weights**2 @ (beta - mean) ** 2)
    assert (np.abs(found.mean - mean) < 4.5 * errors).all()
    assert (np.abs(found.sd / np.sqrt(weights @ (beta - mean) ** 2) - 1) < 0.02).all()


def test_importance_sampling_of_a_skewed_law() -> None:
    """A gamma variable by its logarithm, beside a normal one: mean a/b, sd √a/b."""

    def log_density(w: Array) -> Array:
        found: Array = 3 * w[:, 0] - 2 * np.exp(w[:, 0]) - 0.5 * (w[:, 1] - w[:, 0]) ** 2
        return found

    found = by_importance(
        log_density, np.zeros(2), lambda w: np.stack([np.exp(w[:, 0]), w[:, 1] - w[:, 0]], 1)
    )
    assert found.mean_error.max() < 0.01
    for k, (mean, sd) in enumerate([(1.5, 3**0.5 / 2), (0.0, 1.0)]):
        assert abs(found.moments.mean[k] - mean) < 4.5 * found.mean_error[k] * sd
        assert abs(found.moments.sd[k] / sd - 1) < 4.5 * found.sd_error[k]
