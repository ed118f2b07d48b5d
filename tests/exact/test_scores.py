"""The error bars themselves, against exact expectations and calibration."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.linalg import toeplitz

from .scores import mcse_of_mean, z_score


def test_scores_of_independent_draws_are_standard_normal() -> None:
    rng = np.random.default_rng(1)
    replicates = 500
    scores = np.empty(replicates)
    for i in range(replicates):
        draws = 3.0 + 2.0 * rng.standard_normal((4, 400))
        scores[i] = z_score(draws.mean(), 3.0, mcse_of_mean(draws))
    # 80 batches: Student t with 79 degrees of freedom, of variance 79/77.
    assert abs(z_score(scores.mean(), 0.0, math.sqrt(1.0 / replicates))) < 4.0
    assert abs(z_score(float(np.mean(scores**2)), 79 / 77, math.sqrt(2.1 / replicates))) < 4.0


def test_squared_error_of_autocorrelated_draws_has_its_exact_expectation() -> None:
    rng = np.random.default_rng(2)
    rho, num_samples, num_chains = 0.8, 1024, 2
    covariance = toeplitz(rho ** np.arange(num_samples))
    num_batches, length = 32, 32
    averaging = np.kron(np.eye(num_batches), np.full((1, length), 1.0 / length))
    of_batches = averaging @ covariance @ averaging.T
    total = num_chains * num_batches
    trace, grand = num_chains * np.trace(of_batches), num_chains * of_batches.sum()
    expected = (trace - grand / total) / (total - 1) / total
    factor = np.linalg.cholesky(covariance)
    squared = [
        mcse_of_mean(rng.standard_normal((num_chains, num_samples)) @ factor.T) ** 2
        for _ in range(400)
    ]
    error = float(np.std(squared, ddof=1) / math.sqrt(len(squared)))
    assert abs(z_score(float(np.mean(squared)), float(expected), error)) < 4.0
    # And the expectation is near the true squared error of the mean, far above the naive one.
    truth = covariance.sum() / num_samples**2 / num_chains
    assert 0.8 < expected / truth < 1.0
    assert expected > 5.0 / (num_chains * num_samples)


def test_the_squared_error_is_unbiased_at_few_batches() -> None:
    draws = np.repeat([1.0, 2.0, 3.0, 6.0], 4)[None, :]  # batch means of variance 14/3
    assert mcse_of_mean(draws) == pytest.approx(math.sqrt(14.0 / 3.0 / 4.0))


def test_chains_that_disagree_widen_the_error() -> None:
    rng = np.random.default_rng(3)
    draws = rng.standard_normal((4, 100))
    apart = draws + np.array([-3.0, -1.0, 1.0, 3.0])[:, None]
    assert mcse_of_mean(apart) > 3.0 * mcse_of_mean(draws)


def test_left_over_draws_are_the_oldest() -> None:
    draws = np.random.default_rng(4).standard_normal((2, 27))  # five batches of five
    later = draws.copy()
    later[:, :2] = 1e6
    assert mcse_of_mean(later) == mcse_of_mean(draws)


@pytest.mark.parametrize("mcse", [0.0, -1.0, math.nan, math.inf])
def test_an_unusable_error_bar_is_refused(mcse: float) -> None:
    with pytest.raises(ValueError, match="mcse"):
        z_score(1.0, 1.0, mcse)


def test_a_lost_estimate_is_refused() -> None:
    with pytest.raises(ValueError, match="estimate = nan"):
        z_score(math.nan, 1.0, 1.0)


def test_bad_draws_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        mcse_of_mean(np.zeros(100))
    with pytest.raises(ValueError, match="at least 16"):
        mcse_of_mean(np.zeros((4, 15)))
    draws = np.zeros((2, 16))
    draws[1, 3] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        mcse_of_mean(draws)
