"""The Laplace/Gamma hierarchy: theta ~ Laplace(0, lambda), lambda ~ Gamma(alpha, rate beta)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, kve

Array = NDArray[np.float64]


def scale_moment(delta: ArrayLike, alpha: float, beta: float, order: float = 1.0) -> Array:
    """E[lambda^k | Delta], the moments of a scale given its weight.

    p(lambda | Delta) ~ lambda^(alpha-2) exp(-beta lambda - Delta/lambda) is generalised inverse
    Gaussian, with moments (Delta/beta)^(k/2) K_{alpha-1+k}(z) / K_{alpha-1}(z) where
    z = 2 sqrt(beta Delta) (Jorgensen 1982). At k = 1 it is monotone in Delta.

    Args:
        delta: |theta - anchor|, any shape, above zero.
        alpha: shape of the Gamma prior.
        beta: rate of the Gamma prior.
        order: k, 1 by default; -1 gives the mean inverse scale.

    Returns:
        The moments, in the shape of delta.

    Raises:
        ValueError: delta, alpha or beta is not above zero (at 0 and alpha <= 1 the conditional
            cannot be normalised).

    Example:
        >>> f"{scale_moment(1e-3, alpha=0.01, beta=100.0):.1e}"
        '1.9e-03'
    """
    delta = _check(delta, alpha, beta)
    z = 2.0 * np.sqrt(beta * delta)
    ratio = kve(alpha - 1.0 + order, z) / kve(alpha - 1.0, z)
    return np.asarray((delta / beta) ** (order / 2.0) * ratio)


def scale_sd(delta: ArrayLike, alpha: float, beta: float) -> Array:
    """Standard deviation of lambda given Delta, from the first two of `scale_moment`.

    Args:
        delta: |theta - anchor|, any shape, above zero.
        alpha: shape of the Gamma prior.
        beta: rate of the Gamma prior.

    Returns:
        The standard deviations, in the shape of delta. Digits are lost where the conditional is
        very narrow, z = 2 sqrt(beta Delta) above about 1e6.

    Raises:
        ValueError: as `scale_moment`.

    Example:
        >>> round(float(scale_sd(1.0, alpha=1.5, beta=1.0)), 9)  # 13/4 - 9/4
        1.0
    """
    mean = scale_moment(delta, alpha, beta)
    return np.asarray(np.sqrt(scale_moment(delta, alpha, beta, order=2.0) - mean**2))


def log_marginal_prior(delta: ArrayLike, alpha: float, beta: float) -> Array:
    """Log density of Delta = |theta - anchor| over (0, inf), lambda integrated out.

    p(Delta) = 2 beta^alpha / Gamma(alpha) (Delta/beta)^((alpha-1)/2) K_{alpha-1}(z) with
    z = 2 sqrt(beta Delta). The density of the signed theta is half of it.

    Args:
        delta: any shape, above zero.
        alpha: shape of the Gamma prior.
        beta: rate of the Gamma prior.

    Returns:
        The log densities, in the shape of delta.

    Raises:
        ValueError: delta, alpha or beta is not above zero.

    Example:
        >>> round(float(log_marginal_prior(0.25, alpha=1.5, beta=4.0)), 9)  # 8 exp(-2)
        0.079441542
    """
    delta = _check(delta, alpha, beta)
    z = 2.0 * np.sqrt(beta * delta)
    log_k = np.log(kve(alpha - 1.0, z)) - z
    constant = math.log(2.0) + alpha * math.log(beta) - float(gammaln(alpha))
    return np.asarray(constant + 0.5 * (alpha - 1.0) * np.log(delta / beta) + log_k)


class LaplaceGamma(NamedTuple):
    """Posterior of one weight and its scale."""

    scale_mean: float  # E[lambda | y]
    weight_mean: float  # E[theta | y]
    log_evidence: float  # log p(y)


def laplace_gamma_posterior(y: float, sd: float, alpha: float, beta: float) -> LaplaceGamma:
    """Posterior means for y ~ N(theta, sd), by one-dimensional quadrature over log |theta|.

    lambda is integrated out in closed form: p(Delta) is `log_marginal_prior` and
    E[lambda | Delta] `scale_moment`. As small alpha heaps mass at theta = 0 beyond the reach of
    any grid, the evidence is taken as N(y; 0) + the integral of (N(y; theta) - N(y; 0)) p(theta),
    whose integrand vanishes at 0 at any alpha; the other two vanish there by themselves.

    Args:
        y: the observation, an offset from the anchor.
        sd: standard deviation of the observation.
        alpha: shape of the Gamma prior.
        beta: rate of the Gamma prior.

    Returns:
        A `LaplaceGamma`.

    Raises:
        ValueError: sd, alpha or beta is not above zero.

    Example:
        >>> posterior = laplace_gamma_posterior(0.4, sd=0.1, alpha=5.0, beta=50.0)
        >>> round(posterior.scale_mean, 5)
        0.13187
    """
    if not (sd > 0.0 and alpha > 0.0 and beta > 0.0):
        raise ValueError(f"sd = {sd}, alpha = {alpha}, beta = {beta} must be above zero.")
    # The prior falls off as exp(-2 sqrt(beta Delta)): below e^-100 of its peak at the first bound.
    top = math.log(max((100.0 + 8.0 * alpha) ** 2 / (4.0 * beta), abs(y) + 40.0 * sd))
    bottom = min(math.log(sd), math.log(1.0 / beta)) - 40.0
    # A tenth of the likelihood's width in log |theta|, where the trapezoid rule is exact.
    spacing = min(0.01, 0.1 * sd / (abs(y) + sd))
    u = np.linspace(bottom, top, math.ceil((top - bottom) / spacing) + 1)
    delta = np.exp(u)
    mass = np.exp(log_marginal_prior(delta, alpha, beta) + u) * (u[1] - u[0])
    # Likelihoods of +Delta and -Delta, over that of theta = y.
    plus = np.exp(-0.5 * ((y - delta) / sd) ** 2)
    minus = np.exp(-0.5 * ((y + delta) / sd) ** 2)
    even = 0.5 * (plus + minus)
    zero = math.exp(-0.5 * (y / sd) ** 2)
    evidence = zero + float(np.sum(mass * (even - zero)))
    return LaplaceGamma(
        scale_mean=float(np.sum(mass * even * scale_moment(delta, alpha, beta))) / evidence,
        weight_mean=float(np.sum(mass * 0.5 * (plus - minus) * delta)) / evidence,
        log_evidence=math.log(evidence) - math.log(sd) - 0.5 * math.log(2.0 * math.pi),
    )


def _check(delta: ArrayLike, alpha: float, beta: float) -> Array:
    if not (alpha > 0.0 and beta > 0.0):
        raise ValueError(f"alpha = {alpha} and beta = {beta} must be above zero.")
    values = np.asarray(delta, dtype=np.float64)
    if not (values > 0.0).all():
        raise ValueError(f"delta must be above zero; the smallest given is {values.min()}.")
    return values
