"""BAOAB on a quadratic: the affine form, the closed form and the literal step agree."""

from __future__ import annotations

import math

import numpy as np
import pytest

from .baoab import baoab_affine, baoab_stationary_variance
from .quadratic import affine_stationary_covariance, stationary_variance
from .scores import z_score


@pytest.mark.parametrize("a", [0.3, 5.0])
@pytest.mark.parametrize("step_size", [0.01, 0.7])
@pytest.mark.parametrize("friction", [0.2, 3.0, math.inf])
def test_closed_form_solves_the_lyapunov_equation(
    a: float, step_size: float, friction: float
) -> None:
    A, Q = baoab_affine(a, step_size, friction, temperature=1.7, s2=4.0)
    covariance = affine_stationary_covariance(A, Q)
    expected = baoab_stationary_variance(a, step_size, friction, temperature=1.7, s2=4.0)
    assert covariance[0, 0] == pytest.approx(expected, rel=1e-9)


def test_against_the_step_as_written() -> None:
    rng = np.random.default_rng(20)
    a, step_size, friction, temperature, s2 = 2.0, 0.5, 1.0, 1.3, 6.0
    h, c = math.sqrt(step_size), math.exp(-friction * math.sqrt(step_size))
    x, p = np.zeros(40_000), np.zeros(40_000)
    for _ in range(150):
        p = p + h * (-a * x + math.sqrt(s2) * rng.standard_normal(x.shape))
        x = x + 0.5 * h * p
        p = c * p + math.sqrt((1.0 - c * c) * temperature) * rng.standard_normal(x.shape)
        x = x + 0.5 * h * p
    covariance = affine_stationary_covariance(
        *baoab_affine(a, step_size, friction, temperature, s2)
    )
    for product, truth in (
        (x * x, covariance[0, 0]),
        (p * p, covariance[1, 1]),
        (x * p, covariance[0, 1]),
    ):
        error = float(product.std(ddof=1) / math.sqrt(x.size))
        assert abs(z_score(float(product.mean()), float(truth), error)) < 4.0
    assert covariance[0, 0] > 1.5 * temperature / a  # the gradient's noise is plain to see


@pytest.mark.parametrize("step_size", [0.01, 1.0, 1.99])
def test_positions_are_exact_without_gradient_noise(step_size: float) -> None:
    A, Q = baoab_affine(2.0, step_size, friction=0.7, temperature=1.4)
    assert affine_stationary_covariance(A, Q)[0, 0] == pytest.approx(0.7, rel=1e-9)


def test_full_friction_adds_the_gradient_noise_of_sgld() -> None:
    a, step_size, s2 = 2.0, 0.5, 6.0
    of_sgld = stationary_variance(a, 0.0, a, step_size, s2) - stationary_variance(
        a, 0.0, a, step_size
    )
    of_baoab = baoab_stationary_variance(a, step_size, math.inf, s2=s2) - 1.0 / a
    assert of_baoab == pytest.approx(float(of_sgld), rel=1e-12)


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="below 4/a"):
        baoab_stationary_variance(2.0, 2.0, 1.0)
    with pytest.raises(ValueError, match="spectral radius"):
        affine_stationary_covariance(*baoab_affine(2.0, 2.0, 1.0))
    for bad in ((0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, 0.0)):
        with pytest.raises(ValueError, match="above zero"):
            baoab_affine(*bad)
        with pytest.raises(ValueError, match="above zero"):
            baoab_stationary_variance(*bad)
