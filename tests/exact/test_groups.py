"""Shared scales: a group of one against the single weight, and a group against sampled scales."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import logsumexp

from .groups import _log_h, laplace_gamma_group
from .scales import laplace_gamma_posterior


@pytest.mark.parametrize(("alpha", "beta"), [(0.01, 100.0), (0.5, 20.0), (5.0, 50.0)])
@pytest.mark.parametrize("y", [0.0, 0.3, -0.6, 2.0])
def test_a_group_of_one_is_a_weight(y: float, alpha: float, beta: float) -> None:
    group = laplace_gamma_group([y], 0.1, alpha, beta)
    single = laplace_gamma_posterior(y, 0.1, alpha, beta)
    assert group.scale_mean == pytest.approx(single.scale_mean, rel=1e-5)
    assert group.log_evidence == pytest.approx(single.log_evidence, abs=1e-5)


@pytest.mark.parametrize(("alpha", "beta"), [(0.01, 100.0), (0.5, 20.0)])
def test_a_group_against_scales_drawn_from_the_prior(alpha: float, beta: float) -> None:
    rng = np.random.default_rng(1)
    y, sd, count = 0.2 * rng.standard_normal(8), 0.1, 400_000
    # log Gamma(alpha) = log Gamma(alpha + 1) + log(U)/alpha: the draws themselves underflow.
    log_scale = np.log(rng.gamma(alpha + 1.0, size=count) / beta)
    log_scale += np.log(rng.random(count)) / alpha
    rate = sd * np.exp(-np.maximum(log_scale, math.log(1e-9 * sd)))
    level = np.full(count, -0.5 * float(y @ y) / sd**2 - len(y) * math.log(sd))
    for v in y / sd:
        level += np.log(0.5 * rate) + np.logaddexp(_log_h(rate - v), _log_h(rate + v))
    weights = np.exp(level - logsumexp(level))
    group = laplace_gamma_group(y, sd, alpha, beta)
    draws = np.exp(log_scale)
    error = math.sqrt(float((weights**2 * (draws - group.scale_mean) ** 2).sum()))
    assert abs(float(weights @ draws) - group.scale_mean) < 4.5 * error
    assert logsumexp(level) - math.log(count) == pytest.approx(group.log_evidence, abs=0.05)


def test_a_share_that_did_not_move_falls_with_the_distance() -> None:
    shares = [laplace_gamma_group([y] * 8, 0.1, 0.01, 100.0).share_null for y in (0, 0.2, 0.4, 0.8)]
    assert shares[0] > 0.95
    assert shares[-1] < 0.01
    assert np.all(np.diff(shares) < 0)
