"""Learning coefficients of linear networks, and the posterior behind them by two routes."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest
from scipy.integrate import quad

from .normal_crossing import normal_crossing_posterior
from .reduced_rank import deep_linear_learning_coefficient, reduced_rank_learning_coefficient
from .reduced_rank_gibbs import reduced_rank_gibbs_llc
from .reduced_rank_spectrum import reduced_rank_llc
from .scores import z_score

N_BETA = 20_000 / math.log(20_000)
# (M, N, H), asymptotic coefficient, and another Gibbs sampler's value at n = 20,000, error 0.02.
# The third and fourth are equal by symmetry, 5.992 by quadrature: 1.1 of those errors higher.
FIVE = [
    ((5, 5, 3), 6.5, 6.25),
    ((5, 5, 4), 8.0, 7.84),
    ((4, 8, 3), 6.0, 5.97),
    ((8, 4, 3), 6.0, 5.97),
    ((3, 4, 8), 6.0, 5.99),
]
SHAPES = [shape for shape, _, _ in FIVE]


@pytest.mark.parametrize(("shape", "coefficient", "_"), FIVE)
def test_coefficients_of_the_five_cases(
    shape: tuple[int, int, int], coefficient: float, _: float
) -> None:
    assert reduced_rank_learning_coefficient(*shape, 0) == coefficient


def test_two_layers_agree_with_the_deep_formula_everywhere() -> None:
    for M, N, H in product(range(1, 11), repeat=3):
        for r in range(min(M, N, H) + 1):
            deep = deep_linear_learning_coefficient([M, H, N], r)
            assert reduced_rank_learning_coefficient(M, N, H, r) == pytest.approx(deep, abs=1e-9)


def test_the_index_set_is_the_only_one() -> None:
    # The definition leaves open which sets to try: over all subsets, exactly one qualifies.
    rng = np.random.default_rng(40)
    for _ in range(200):
        widths = rng.integers(2, 9, size=rng.integers(3, 6)).tolist()
        rank = int(rng.integers(0, min(widths)))
        excess = [w - rank for w in widths]
        values = []
        for size in range(2, len(excess) + 1):
            for chosen in combinations(range(len(excess)), size):
                inside = [excess[i] for i in chosen]
                outside = [e for i, e in enumerate(excess) if i not in chosen]
                floor, ell, total = min(outside, default=math.inf), size - 1, sum(inside)
                if max(inside) < floor and ell * max(inside) <= total < ell * floor:
                    a = total - (math.ceil(total / ell) - 1) * ell
                    pairs = (total**2 - sum(i * i for i in inside)) / 2
                    values.append(
                        (-(rank**2) + rank * (widths[0] + widths[-1])) / 2
                        + a * (ell - a) / (4 * ell)
                        - ell * (ell - 1) / 4 * (total / ell) ** 2
                        + pairs / 2
                    )
        assert len(values) == 1
        found = deep_linear_learning_coefficient(widths, rank)
        assert found == pytest.approx(values[0], abs=1e-9)


def test_two_widths_are_plain_regression() -> None:
    assert deep_linear_learning_coefficient([4, 7], 3) == pytest.approx(14.0)


def test_spectrum_against_a_radial_integral() -> None:
    # H = 1: B is Gaussian given |A| = t, and |A| is all that is left of A.
    M, N, gamma = 6, 7, 1.3

    def integrand(t: float, share: int) -> float:
        precision = N_BETA * t * t + gamma
        density = t ** (M - 1) * math.exp(-0.5 * gamma * t * t) * precision ** (-0.5 * N)
        return float(density * (0.5 * N * (1.0 - gamma / precision)) ** share)

    points = [0.01, 0.03, 0.1, 0.5, 2.0]
    top, total = (
        quad(integrand, 0.0, 12.0, args=(share,), points=points, limit=400, epsabs=0.0)[0]
        for share in (1, 0)
    )
    exact = reduced_rank_llc(M, N, 1, n_beta=N_BETA, gamma=gamma)
    assert exact == pytest.approx(top / total, rel=1e-6)


@pytest.mark.parametrize("H", [6, 9])
def test_spectrum_tends_to_the_asymptotic_coefficient(H: int) -> None:
    # Case 4: there is no log log term, and the limit is soon reached.
    limit = reduced_rank_learning_coefficient(2, 3, H, 0)
    assert reduced_rank_llc(2, 3, H, n_beta=1e8) == pytest.approx(limit, rel=1e-3)


def test_a_single_path_is_the_normal_crossing() -> None:
    exact = normal_crossing_posterior(1, 1, n_beta=N_BETA, gamma=0.6).llc
    assert reduced_rank_llc(1, 1, 1, n_beta=N_BETA, gamma=0.6) == pytest.approx(exact, rel=1e-6)
    run = reduced_rank_gibbs_llc(1, 1, 1, n_beta=N_BETA, gamma=0.6, seed=41)
    assert abs(z_score(run.llc, exact, run.mcse)) < 4.0


def test_gibbs_with_correlated_inputs_against_a_radial_integral() -> None:
    # H = 1: A is Gaussian given |B| = t, with a precision of its own for each eigenvalue of S.
    N, gamma, s = 3, 1.5, np.array([0.5, 3.0])
    rotation = np.array([[0.8, -0.6], [0.6, 0.8]])

    def integrand(t: float, order: int) -> float:
        precision = N_BETA * s * t * t + gamma
        density = t ** (N - 1) * math.exp(-0.5 * gamma * t * t) / math.sqrt(math.prod(precision))
        return density * (0.5 * float(np.sum(1.0 - gamma / precision))) ** order

    points = [0.01, 0.03, 0.1, 0.5, 2.0]
    top, total = (
        quad(integrand, 0.0, 12.0, args=(order,), points=points, limit=400, epsabs=0.0)[0]
        for order in (1, 0)
    )
    run = reduced_rank_gibbs_llc(
        2, N, 1, n_beta=N_BETA, gamma=gamma, second_moment=rotation @ np.diag(s) @ rotation.T,
        seed=42,
    )  # fmt: skip
    assert abs(z_score(run.llc, top / total, run.mcse)) < 4.0


@pytest.mark.parametrize("shape", [*SHAPES, (2, 2, 2), (6, 2, 5)])
def test_gibbs_against_the_spectrum(shape: tuple[int, int, int]) -> None:
    run = reduced_rank_gibbs_llc(
        *shape, n_beta=N_BETA, num_chains=64, num_samples=500, warmup_steps=200, seed=43
    )
    assert abs(z_score(run.llc, reduced_rank_llc(*shape, n_beta=N_BETA), run.mcse)) < 4.0
    assert run.mcse < 0.01  # sharp enough to fail
    halves = run.draws.reshape(64, 2, 250).mean(axis=2)
    drift = halves[:, 1] - halves[:, 0]
    assert abs(z_score(float(drift.mean()), 0.0, float(drift.std(ddof=1) / 8.0))) < 4.0


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "_", "earlier"), FIVE)
def test_gibbs_on_sampled_inputs_against_earlier_values(
    shape: tuple[int, int, int], _: float, earlier: float
) -> None:
    inputs = np.random.default_rng(44).standard_normal((20_000, shape[0]))
    run = reduced_rank_gibbs_llc(
        *shape,
        n_beta=N_BETA,
        second_moment=inputs.T @ inputs / 20_000,
        num_chains=256,
        num_samples=4000,
        warmup_steps=500,
        seed=45,
    )
    assert run.mcse < 0.002
    assert abs(z_score(run.llc, earlier, math.hypot(run.mcse, 0.02))) < 2.5
    # The sample's second moment is the identity within 2 %, which moves the answer far less.
    assert run.llc == pytest.approx(reduced_rank_llc(*shape, n_beta=N_BETA), abs=0.01)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="rank = 4"):
        reduced_rank_learning_coefficient(5, 5, 3, 4)
    with pytest.raises(ValueError, match="at least two"):
        deep_linear_learning_coefficient([5], 0)
    with pytest.raises(ValueError, match="second_moment"):
        reduced_rank_gibbs_llc(2, 1, 1, n_beta=1.0, second_moment=np.eye(3))
    with pytest.raises(ValueError, match="n_beta"):
        reduced_rank_gibbs_llc(2, 1, 1, n_beta=0.0)
    with pytest.raises(ValueError, match="gamma"):
        reduced_rank_llc(2, 1, 1, n_beta=1.0, gamma=0.0)
    with pytest.raises(ValueError, match="at least 1"):
        reduced_rank_llc(0, 1, 1, n_beta=1.0)
