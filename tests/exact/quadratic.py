"""What discretised samplers settle on when the loss is quadratic.

Loss L(w) = 1/2 sum_i h_i (w_i - w*_i)^2 + const, log-posterior -n beta L(w) - gamma/2 |w - w*|^2,
so that the log-posterior has curvature a_i = n beta h_i + gamma in direction i. Every step below
follows w <- w + (eps/2) grad log p(w) + sqrt(eps T) xi, or reduces to it at high friction.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solve_discrete_lyapunov

Array = NDArray[np.float64]


def _curvature(h: ArrayLike, n_beta: float, gamma: float) -> Array:
    a = n_beta * np.asarray(h, dtype=np.float64) + gamma
    if not (a > 0.0).all():
        raise ValueError(f"n_beta*h + gamma = {a} must be above zero; raise gamma.")
    return np.asarray(a)


def _check_stable(a: Array, step_size: float) -> None:
    if step_size <= 0.0 or (step_size * a >= 4.0).any():
        raise ValueError(
            f"step_size = {step_size} must be above 0 and below 4/max(a) = {4.0 / a.max()}; "
            "beyond it the chain diverges and no stationary law exists."
        )


def stationary_variance(
    h: ArrayLike,
    n_beta: float,
    gamma: float,
    step_size: float,
    gradient_noise_variance: ArrayLike = 0.0,
    temperature: float = 1.0,
) -> Array:
    """Variance of every direction of a stationary SGLD chain, discretisation included.

    [T + eps s2/4] / [a (1 - eps a/4)]: the fixed point of v = (1 - eps a/2)^2 v + eps T +
    eps^2 s2/4. An effective temperature (T + eps s2/4)/(1 - eps a/4) says the same.

    Args:
        h: (D,) curvatures of the loss.
        n_beta: number of data times inverse temperature.
        gamma: localisation.
        step_size: eps.
        gradient_noise_variance: s2, scalar or (D,), the variance of the noise in the gradient of
            the *log-posterior*; for minibatches of size b and per-example gradient variance v of
            the loss it is (n beta)^2 v / b. Zero by default: full-data gradients.
        temperature: T, 1 by default: the posterior itself.

    Returns:
        (D,) variances about w*.

    Raises:
        ValueError: a curvature that is not above zero, or a step outside (0, 4/max a).

    Example:
        >>> stationary_variance([1.0, 0.0], n_beta=3.0, gamma=1.0, step_size=0.5)
        array([0.5       , 1.14285714])
    """
    a = _curvature(h, n_beta, gamma)
    _check_stable(a, step_size)
    s2 = np.asarray(gradient_noise_variance, dtype=np.float64)
    return (temperature + step_size * s2 / 4.0) / (a * (1.0 - step_size * a / 4.0))


def llc(
    h: ArrayLike,
    n_beta: float,
    gamma: float,
    step_size: float | None = None,
    gradient_noise_variance: ArrayLike = 0.0,
    temperature: float = 1.0,
) -> float:
    """Local learning coefficient n beta (E[L] - L(w*)) = sum_i 1/2 n beta h_i var_i.

    Args:
        h: (D,) curvatures of the loss.
        n_beta: number of data times inverse temperature.
        gamma: localisation.
        step_size: eps of SGLD; None (the default) is the limit of small steps, var_i = T/a_i,
            in which gradient noise has no effect either.
        gradient_noise_variance: as in `stationary_variance`.
        temperature: T, 1 by default.

    Returns:
        The coefficient; 1/2 sum n beta h/(n beta h + gamma) in the limit at T = 1.

    Raises:
        ValueError: as `stationary_variance`.

    Example:
        >>> llc([1.0, 0.0], n_beta=3.0, gamma=1.0)
        0.375
        >>> llc([1.0, 0.0], n_beta=3.0, gamma=1.0, step_size=0.5)
        0.75
    """
    if step_size is None:
        variance = temperature / _curvature(h, n_beta, gamma)
    else:
        variance = stationary_variance(
            h, n_beta, gamma, step_size, gradient_noise_variance, temperature
        )
    return float(0.5 * n_beta * np.sum(np.asarray(h, dtype=np.float64) * variance))


def affine_stationary_covariance(A: Array, Q: Array) -> Array:
    """Stationary covariance X = A X A' + Q of x <- A x + noise, noise of covariance Q.

    For SGLD on a quadratic log-posterior of precision P with gradient noise of covariance S:
    A = I - (eps/2) P and Q = eps T I + (eps^2/4) S. A constant drift shifts the mean alone.

    Args:
        A: (D, D) transition.
        Q: (D, D) covariance of the noise of one step.

    Returns:
        (D, D) covariance.

    Raises:
        ValueError: the spectral radius of A is 1 or more, so there is no stationary law.

    Example:
        >>> affine_stationary_covariance(np.array([[0.5]]), np.array([[0.75]]))
        array([[1.]])
    """
    radius = float(np.abs(np.linalg.eigvals(A)).max())
    if not radius < 1.0:
        raise ValueError(f"A has spectral radius {radius}; it must be below 1: lower the step.")
    return np.asarray(solve_discrete_lyapunov(A, Q), dtype=np.float64)
