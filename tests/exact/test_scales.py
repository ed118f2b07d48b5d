"""The Laplace/Gamma hierarchy against quadrature over the scale and the reference values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.integrate import quad, trapezoid
from scipy.special import erfcx, log_ndtr
from scipy.stats import gamma as gamma_law

from .scales import laplace_gamma_posterior, log_marginal_prior, scale_moment, scale_sd

Array = NDArray[np.float64]


@pytest.mark.parametrize(
    ("delta", "expected"),
    [(1e-6, 8.4e-6), (1e-5, 6.0e-5), (1e-4, 3.7e-4), (1e-3, 1.9e-3), (1e-2, 8.2e-3), (0.1, 2.9e-2)],
)
def test_scale_given_distance_at_the_published_prior(delta: float, expected: float) -> None:
    assert scale_moment(delta, 0.01, 100.0) == pytest.approx(expected, rel=0.026)  # two digits


@pytest.mark.parametrize(("alpha", "beta"), [(0.01, 100.0), (0.5, 3.0), (1.0, 1.0), (5.0, 50.0)])
@pytest.mark.parametrize("delta", [1e-6, 0.02, 4.0])
def test_moments_and_marginal_against_integrals_over_the_scale(
    alpha: float, beta: float, delta: float
) -> None:
    u = np.linspace(math.log(delta) - 8.0, math.log(200.0 / beta + delta), 40_001)
    scale = np.exp(u)
    # Gamma(alpha, beta) times Laplace, folded onto Delta, times the Jacobian of u.
    joint = gamma_law.pdf(scale, alpha, scale=1.0 / beta) * np.exp(-delta / scale)
    total = trapezoid(joint, u)
    assert math.exp(log_marginal_prior(delta, alpha, beta)) == pytest.approx(total, rel=1e-6)
    for order in (-1.0, 0.5, 1.0, 2.0):
        moment = trapezoid(joint * scale**order, u) / total
        assert scale_moment(delta, alpha, beta, order) == pytest.approx(moment, rel=1e-6)
    mean = trapezoid(joint * scale, u) / total
    variance = trapezoid(joint * (scale - mean) ** 2, u) / total
    assert scale_sd(delta, alpha, beta) == pytest.approx(math.sqrt(variance), rel=1e-6)


def test_mean_scale_grows_with_distance() -> None:
    mean = scale_moment(np.geomspace(1e-30, 1e3, 400), 0.01, 100.0)
    assert np.isfinite(mean).all()
    assert (np.diff(mean) > 0.0).all()


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 3.0), (2.0, 1.0)])
def test_marginal_prior_is_normalised_with_mean_alpha_over_beta(alpha: float, beta: float) -> None:
    def integrand(u: float, order: int) -> float:
        return math.exp(float(log_marginal_prior(math.exp(u), alpha, beta)) + (1 + order) * u)

    total, mean = (quad(integrand, -80.0, 8.0, args=(k,), points=[-5.0, 0.0])[0] for k in (0, 1))
    assert total == pytest.approx(1.0, rel=1e-6)
    assert mean == pytest.approx(alpha / beta, rel=1e-6)  # E|theta| = E[lambda]


@pytest.mark.parametrize(
    ("y", "expected"),
    [(0.0, 0.09170), (0.1, 0.09459), (0.2, 0.10368), (0.4, 0.13187), (0.8, 0.17204)],
)
def test_posterior_scale_at_the_reference_values(y: float, expected: float) -> None:
    found = laplace_gamma_posterior(y, sd=0.1, alpha=5.0, beta=50.0).scale_mean
    assert found == pytest.approx(expected, abs=6e-6)


def _laplace_normal(y: float, sd: float, scale: Array) -> Array:
    """Density at y of a Laplace(0, scale) plus a N(0, sd), the weight integrated out."""
    total = np.zeros_like(scale)
    for side in (y, -y):
        t = side / sd - sd / scale
        upper = log_ndtr(np.maximum(t, 0.0)) + 0.5 * np.maximum(t, 0.0) ** 2
        lower = np.log(0.5 * erfcx(np.maximum(-t, 0.0) / math.sqrt(2.0)))
        total += np.exp(np.where(t > 0.0, upper, lower) - 0.5 * (y / sd) ** 2)
    return np.asarray(total / (2.0 * scale))


@pytest.mark.parametrize(("alpha", "beta"), [(0.01, 100.0), (0.5, 20.0), (5.0, 50.0), (5.0, 0.5)])
@pytest.mark.parametrize(("y", "sd"), [(0.0, 0.1), (0.05, 0.1), (-0.6, 0.1), (1.5, 0.02)])
def test_posterior_against_the_integral_over_the_scale(
    y: float, sd: float, alpha: float, beta: float
) -> None:
    cut = 1e-9  # below it the weight is nil next to sd, and the scale's own mass is known
    u = np.linspace(math.log(cut), math.log(100.0 / beta + 10.0), 60_001)
    scale = np.exp(u)
    joint = gamma_law.pdf(scale, alpha, scale=1.0 / beta) * scale * _laplace_normal(y, sd, scale)
    null = math.exp(-0.5 * (y / sd) ** 2) / (sd * math.sqrt(2.0 * math.pi))
    total = trapezoid(joint, u) + null * gamma_law.cdf(cut, alpha, scale=1.0 / beta)
    exact = laplace_gamma_posterior(y, sd, alpha, beta)
    assert exact.log_evidence == pytest.approx(math.log(total), abs=1e-6)
    assert exact.scale_mean == pytest.approx(trapezoid(joint * scale, u) / total, rel=1e-5)


@pytest.mark.parametrize(("alpha", "beta"), [(0.01, 100.0), (5.0, 50.0)])
@pytest.mark.parametrize("y", [-0.6, 0.05, 0.3])
def test_posterior_weight_is_the_slope_of_the_evidence(y: float, alpha: float, beta: float) -> None:
    # Tweedie's formula: E[theta | y] = y + sd^2 d log p(y) / dy.
    sd, step = 0.1, 1e-4
    above, below = (
        laplace_gamma_posterior(y + shift, sd, alpha, beta).log_evidence for shift in (step, -step)
    )
    expected = y + sd**2 * (above - below) / (2.0 * step)
    exact = laplace_gamma_posterior(y, sd, alpha, beta)
    assert exact.weight_mean == pytest.approx(expected, rel=1e-4)


def test_symmetry_in_the_observation() -> None:
    plus, minus = (laplace_gamma_posterior(y, 0.1, 0.5, 20.0) for y in (0.3, -0.3))
    assert plus.scale_mean == pytest.approx(minus.scale_mean, rel=1e-12)
    assert plus.weight_mean == pytest.approx(-minus.weight_mean, rel=1e-12)
    assert laplace_gamma_posterior(0.0, 0.1, 0.5, 20.0).weight_mean == 0.0


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="delta"):
        scale_moment(np.array([1.0, 0.0]), 0.5, 1.0)
    with pytest.raises(ValueError, match="alpha"):
        log_marginal_prior(1.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="sd"):
        laplace_gamma_posterior(0.0, 0.0, 0.5, 1.0)
    with pytest.raises(ValueError, match="beta = 0"):
        laplace_gamma_posterior(0.0, 1.0, 0.5, 0.0)
