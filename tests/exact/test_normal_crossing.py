"""Quadrature for the normal crossing against one-dimensional integrals, an identity and limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad

from .normal_crossing import normal_crossing_learning_coefficient, normal_crossing_posterior
from .quadratic import llc

N_BETA = 20_000 / math.log(20_000)
EXPONENTS = [(0, 1), (1, 1), (1, 2), (2, 1), (3, 2), (0, 3)]


@pytest.mark.parametrize("a", [0, 1, 2, 3])
def test_against_the_integral_over_the_first_weight(a: int) -> None:
    # With b = 1 the second weight is Gaussian given the first, of precision k w1^(2a) + gamma.
    gamma, m2 = 2.5, 0.8
    k = N_BETA * m2

    def mean(*, power: int = 0, share: int = 0) -> float:
        def integrand(w: float) -> float:
            precision = k * w ** (2 * a) + gamma
            density = math.exp(-0.5 * gamma * w * w) / math.sqrt(precision)
            return density * w**power * (1.0 - gamma / precision) ** share

        points = [0.003, 0.03, 0.1, 0.3, 1.0]
        return 2.0 * quad(integrand, 0.0, 9.0, points=points, limit=400, epsrel=1e-11)[0]

    total = mean()
    exact = normal_crossing_posterior(a, 1, n_beta=N_BETA, gamma=gamma, m2=m2)
    assert exact.llc == pytest.approx(0.5 * mean(share=1) / total, rel=1e-7)
    second = 0.75 * mean(share=2) / total  # E[(n beta L)^2]: the fourth moment of a Gaussian
    assert exact.loss_sd == pytest.approx(math.sqrt(second - exact.llc**2), rel=1e-7)
    assert exact.second_moments[0] == pytest.approx(mean(power=2) / total, rel=1e-7)


@pytest.mark.parametrize(("a", "b"), EXPONENTS)
def test_virial_identity(a: int, b: int) -> None:
    # E[n beta <w, grad L> + gamma |w|^2] = 2, and L is homogeneous of degree 2 (a + b).
    gamma = 0.7
    exact = normal_crossing_posterior(a, b, n_beta=N_BETA, gamma=gamma)
    identity = 2.0 * (a + b) * exact.llc + gamma * exact.second_moments.sum()
    assert identity == pytest.approx(2.0, rel=1e-7)


@pytest.mark.parametrize(("a", "b"), EXPONENTS)
def test_refining_changes_nothing(a: int, b: int) -> None:
    coarse = normal_crossing_posterior(a, b, n_beta=N_BETA, gamma=1.0)
    fine = normal_crossing_posterior(a, b, n_beta=N_BETA, gamma=1.0, num_nodes=1501)
    assert coarse.llc == pytest.approx(fine.llc, rel=1e-7)
    assert coarse.loss_sd == pytest.approx(fine.loss_sd, rel=1e-7)
    np.testing.assert_allclose(coarse.second_moments, fine.second_moments, rtol=1e-7)


def test_a_single_linear_weight_is_a_quadratic() -> None:
    exact = normal_crossing_posterior(1, 0, n_beta=50.0, gamma=3.0, m2=1.2)
    assert exact.llc == pytest.approx(llc([1.2], 50.0, 3.0), rel=1e-9)
    assert exact.loss_sd == pytest.approx(math.sqrt(2.0) * exact.llc, rel=1e-9)
    np.testing.assert_allclose(exact.second_moments, [1.0 / 63.0, 1.0 / 3.0], rtol=1e-9)


def test_swapping_the_exponents_swaps_the_weights() -> None:
    one = normal_crossing_posterior(1, 3, n_beta=N_BETA, gamma=1.0)
    other = normal_crossing_posterior(3, 1, n_beta=N_BETA, gamma=1.0)
    assert one.llc == pytest.approx(other.llc, rel=1e-12)
    np.testing.assert_allclose(one.second_moments, other.second_moments[::-1], rtol=1e-12)


@pytest.mark.parametrize(("a", "b"), [(0, 1), (1, 2), (2, 1), (1, 3), (0, 3)])
def test_the_asymptotic_coefficient_is_the_limit(a: int, b: int) -> None:
    limit = normal_crossing_learning_coefficient(a, b)
    gaps = [
        abs(normal_crossing_posterior(a, b, n_beta=n_beta, gamma=1.0).llc - limit)
        for n_beta in (1e3, 1e6, 1e12)
    ]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 0.01 * limit


def test_equal_exponents_have_multiplicity_two() -> None:
    # n beta E[L] = d F / d log(n beta) with F = lambda log n - log log n: short by 1/log n.
    for n_beta in (1e6, 1e12):
        exact = normal_crossing_posterior(1, 1, n_beta=n_beta, gamma=1.0).llc
        assert (0.5 - exact) * math.log(n_beta) == pytest.approx(1.0, abs=0.15)


def test_bad_arguments_are_refused() -> None:
    for a, b in ((0, 0), (-1, 2)):
        with pytest.raises(ValueError, match="at least 0"):
            normal_crossing_posterior(a, b, n_beta=1.0, gamma=1.0)
        with pytest.raises(ValueError, match="at least 0"):
            normal_crossing_learning_coefficient(a, b)
    with pytest.raises(ValueError, match="gamma"):
        normal_crossing_posterior(1, 1, n_beta=1.0, gamma=0.0)
