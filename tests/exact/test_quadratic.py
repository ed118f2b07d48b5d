"""SGLD on a quadratic: closed forms against simulation, quadrature and each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad

from .quadratic import affine_stationary_covariance, llc, stationary_variance
from .scores import z_score

H = np.array([0.0, 0.1, 1.0])
N_BETA, GAMMA, STEP, S2, T = 20.0, 2.0, 0.12, 8.0, 1.5


def test_variance_and_llc_against_simulated_chains() -> None:
    rng = np.random.default_rng(10)
    a = N_BETA * H + GAMMA
    x = np.zeros((40_000, 3))
    for _ in range(100):  # (1 - eps a_min / 2)^200 is 1e-11
        gradient = -a * x + math.sqrt(S2) * rng.standard_normal(x.shape)
        x = x + 0.5 * STEP * gradient + math.sqrt(STEP * T) * rng.standard_normal(x.shape)
    variance = stationary_variance(H, N_BETA, GAMMA, STEP, S2, T)
    squares = x**2
    errors = squares.std(axis=0, ddof=1) / math.sqrt(len(x))
    for i in range(3):
        assert abs(z_score(squares[:, i].mean(), variance[i], errors[i])) < 4.0
        # The noise, the step and the temperature all matter here far beyond the error.
        assert abs(variance[i] - 1.0 / a[i]) > 20.0 * errors[i]
    excess = 0.5 * N_BETA * squares @ H
    error = float(excess.std(ddof=1) / math.sqrt(len(x)))
    assert abs(z_score(excess.mean(), llc(H, N_BETA, GAMMA, STEP, S2, T), error)) < 4.0


def test_continuous_llc_against_quadrature() -> None:
    def integrand(w: float, h: float, order: int) -> float:
        density = math.exp(-0.5 * (N_BETA * h + GAMMA) * w * w)
        return density * (0.5 * N_BETA * h * w * w) ** order

    expected = 0.0
    for h in H:
        top, total = (quad(integrand, -9.0, 9.0, args=(h, order))[0] for order in (1, 0))
        expected += top / total
    assert llc(H, N_BETA, GAMMA) == pytest.approx(expected, rel=1e-8)
    assert llc(H, N_BETA, GAMMA, temperature=3.0) == pytest.approx(3.0 * expected, rel=1e-8)


def test_small_steps_reach_the_continuous_limit_at_first_order() -> None:
    limit = llc(H, N_BETA, GAMMA)
    gaps = [llc(H, N_BETA, GAMMA, step, S2) - limit for step in (1e-3, 5e-4)]
    assert gaps[0] > 0.0
    assert gaps[0] / gaps[1] == pytest.approx(2.0, rel=0.01)


def test_effective_temperature_says_the_same() -> None:
    a = N_BETA * H + GAMMA
    effective = (T + STEP * S2 / 4.0) / (1.0 - STEP * a / 4.0)
    np.testing.assert_allclose(stationary_variance(H, N_BETA, GAMMA, STEP, S2, T), effective / a)


def test_covariance_is_the_limit_of_its_own_recursion() -> None:
    rng = np.random.default_rng(11)
    A = rng.standard_normal((4, 4))
    A *= 0.9 / np.abs(np.linalg.eigvals(A)).max()
    root = rng.standard_normal((4, 4))
    Q = root @ root.T
    X = np.zeros((4, 4))
    for _ in range(2000):
        X = A @ X @ A.T + Q
    np.testing.assert_allclose(affine_stationary_covariance(A, Q), X, rtol=1e-9)


def test_covariance_of_sgld_in_a_rotated_basis() -> None:
    rng = np.random.default_rng(12)
    U = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    P = U @ np.diag(N_BETA * H + GAMMA) @ U.T
    A = np.eye(3) - 0.5 * STEP * P
    Q = STEP * T * np.eye(3) + 0.25 * STEP**2 * S2 * np.eye(3)
    expected = U @ np.diag(stationary_variance(H, N_BETA, GAMMA, STEP, S2, T)) @ U.T
    np.testing.assert_allclose(affine_stationary_covariance(A, Q), expected, atol=1e-12)


def test_unstable_and_improper_cases_are_refused() -> None:
    limit = 4.0 / (N_BETA + GAMMA)
    assert np.isfinite(stationary_variance(H, N_BETA, GAMMA, 0.999 * limit)).all()
    with pytest.raises(ValueError, match="step_size"):
        stationary_variance(H, N_BETA, GAMMA, limit)
    with pytest.raises(ValueError, match="step_size"):
        stationary_variance(H, N_BETA, GAMMA, 0.0)
    with pytest.raises(ValueError, match="raise gamma"):
        llc([-1.0], N_BETA, GAMMA)
    with pytest.raises(ValueError, match="spectral radius"):
        affine_stationary_covariance(np.eye(2), np.eye(2))
