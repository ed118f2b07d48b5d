"""The Gibbs sampler of deep linear networks, by quadrature and by neighbouring exact answers.

Aoyagi's formula itself is tested in `test_reduced_rank.py`. Most is thorough, as is the test that
holds chains against this sampler.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from .deep_linear import deep_linear_gibbs_llc, rank_blocks
from .reduced_rank import deep_linear_learning_coefficient
from .reduced_rank_spectrum import reduced_rank_llc
from .scores import z_score

# Flat enough for a grid, curved enough that all of a move shows.
N_BETA, GAMMA = 40.0, 1.3
GRID = np.linspace(-7.0, 7.0, 1401)


def given_last_factor(b: np.ndarray, inputs: int) -> tuple[np.ndarray, np.ndarray]:
    """(evidence, E[n beta L]) at W_2 = b (2, ...), for one output; W_1 is Gaussian given b.

    The product's first entry is N(b_1, v) under the localiser and has to be 1, the others N(0, v)
    and have to be 0, with v = |b|^2 / gamma.
    """
    v = np.sum(b**2, axis=0) / GAMMA
    fall, spread = (1.0 - b[0]) ** 2 / (1.0 + N_BETA * v), 1.0 + N_BETA * v
    evidence = spread ** (-0.5 * inputs) * np.exp(-0.5 * N_BETA * fall)
    return evidence, 0.5 * (inputs * N_BETA * v + N_BETA * fall) / spread


@pytest.mark.thorough
@pytest.mark.parametrize("inputs", [1, 2, 4])
@pytest.mark.parametrize("hidden", [1, 2])
def test_two_factors_of_rank_one_against_quadrature(inputs: int, hidden: int) -> None:
    b = np.stack(np.meshgrid(*[GRID] * hidden, indexing="ij"))
    evidence, expected = given_last_factor(b, inputs)
    localiser = np.exp(-0.5 * GAMMA * ((b[0] - 1.0) ** 2 + np.sum(b[1:] ** 2, axis=0)))
    exact = float(np.sum(localiser * evidence * expected) / np.sum(localiser * evidence))
    run = deep_linear_gibbs_llc(
        [inputs, hidden, 1], 1, n_beta=N_BETA, gamma=GAMMA, num_samples=1500, seed=60
    )
    assert run.mcse < 0.003 * exact  # sharp enough to fail
    assert abs(z_score(run.llc, exact, run.mcse)) < 4.0


def test_three_factors_of_rank_one_against_quadrature() -> None:
    # One unit everywhere: P = w_3 p with p = w_2 w_1, and w_3 is Gaussian given p.
    first, second = np.meshgrid(GRID, GRID, indexing="ij")
    p = first * second
    spread = 1.0 + N_BETA * p**2 / GAMMA
    fall = (1.0 - p) ** 2 / spread
    weight = np.exp(-0.5 * GAMMA * ((first - 1.0) ** 2 + (second - 1.0) ** 2))
    weight *= spread**-0.5 * np.exp(-0.5 * N_BETA * fall)
    expected = 0.5 * (N_BETA * p**2 / GAMMA + N_BETA * fall) / spread
    exact = float(np.sum(weight * expected) / np.sum(weight))
    run = deep_linear_gibbs_llc(
        [1, 1, 1, 1], 1, n_beta=N_BETA, gamma=GAMMA, num_samples=1500, seed=61
    )
    assert run.mcse < 0.004 * exact
    assert abs(z_score(run.llc, exact, run.mcse)) < 4.0


def test_one_factor_in_closed_form() -> None:
    run = deep_linear_gibbs_llc([3, 4], 2, n_beta=N_BETA, gamma=GAMMA, num_samples=16)
    np.testing.assert_allclose(run.draws, 6.0 * N_BETA / (N_BETA + GAMMA), rtol=1e-12)


@pytest.mark.thorough
@pytest.mark.parametrize("shape", [(5, 5, 3), (4, 8, 3), (3, 4, 8)])
def test_two_factors_of_rank_zero_against_the_spectrum(shape: tuple[int, int, int]) -> None:
    M, N, H = shape
    n_beta = 20_000 / math.log(20_000)
    run = deep_linear_gibbs_llc([M, H, N], 0, n_beta=n_beta, num_samples=500, seed=62)
    exact = reduced_rank_llc(*shape, n_beta=n_beta)
    assert run.mcse < 0.004 * exact
    assert abs(z_score(run.llc, exact, run.mcse)) < 4.0


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("widths", "rank", "earlier"), [([10, 10, 10], 3, 43.74), ([4, 5, 6, 5, 4], 2, 7.74)]
)
def test_against_earlier_values(widths: list[int], rank: int, earlier: float) -> None:
    # n = 10^6 and gamma = 1, by another sampler; its error is taken as one of the last digit's.
    run = deep_linear_gibbs_llc(widths, rank, n_beta=1e6 / math.log(1e6), seed=63)
    assert run.mcse < 0.001 * earlier
    assert abs(run.llc - earlier) < 3.0 * math.hypot(run.mcse, 0.01)
    drift = run.draws[:, 250:].mean(axis=1) - run.draws[:, :250].mean(axis=1)
    assert abs(z_score(float(drift.mean()), 0.0, float(drift.std(ddof=1) / 32**0.5))) < 4.0


@pytest.mark.thorough
@pytest.mark.parametrize(("widths", "rank"), [([4, 5, 6, 5, 4], 2), ([10, 10, 10], 3)])
def test_tends_to_the_asymptotic_coefficient(widths: list[int], rank: int) -> None:
    # The gap closes like 1/log n: twice the logarithm, half the gap.
    limit = deep_linear_learning_coefficient(widths, rank)
    gaps = [
        limit - deep_linear_gibbs_llc(widths, rank, n_beta=n_beta, num_samples=200, seed=64).llc
        for n_beta in (1e5, 1e10)
    ]
    assert 0.0 < gaps[1] < 0.6 * gaps[0]
    assert gaps[1] < 0.015 * limit


def test_rank_blocks_multiply_to_the_rank() -> None:
    product = np.linalg.multi_dot(rank_blocks([4, 5, 6, 3], 2)[::-1])
    np.testing.assert_array_equal(product, np.diag([1.0, 1.0, 0.0, 0.0])[:3])


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="rank = 4"):
        deep_linear_gibbs_llc([5, 3, 5], 4, n_beta=1.0)
    with pytest.raises(ValueError, match="n_beta"):
        deep_linear_gibbs_llc([5, 3, 5], 2, n_beta=0.0)
