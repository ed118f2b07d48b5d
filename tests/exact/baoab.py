"""The BAOAB kernel on a quadratic log density, one direction at a time.

With h = sqrt(eps) and c = exp(-friction h), a step with its two half kicks merged into one is
    p <- p + h g(x);   x <- x + (h/2) p;   p <- c p + sqrt((1 - c^2) T) xi;   x <- x + (h/2) p
(Leimkuhler & Matthews 2013), where g is the gradient of the log density, possibly noisy.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def baoab_affine(
    a: float, step_size: float, friction: float, temperature: float = 1.0, s2: float = 0.0
) -> tuple[Array, Array]:
    """One step as (x, p) <- A (x, p) + noise, for g(x) = -a x + sqrt(s2) xi'.

    The kick makes p1 = p - h a x + h sqrt(s2) xi', and the rest of the step is
    x + (h/2)(1 + c) p1 + (h/2) sqrt((1 - c^2) T) xi and c p1 + sqrt((1 - c^2) T) xi.

    Args:
        a: curvature of the negative log density.
        step_size: eps = h^2.
        friction: rate of momentum loss; infinity (c = 0) is allowed.
        temperature: T, 1 by default.
        s2: variance of the gradient's noise, 0 by default.

    Returns:
        A and Q, both (2, 2); give them to `affine_stationary_covariance`.

    Raises:
        ValueError: a, step_size or friction is not above zero.

    Example:
        >>> A, Q = baoab_affine(a=1.0, step_size=1.0, friction=math.inf)
        >>> A.tolist(), Q.tolist()
        ([[0.5, 0.5], [0.0, 0.0]], [[0.25, 0.5], [0.5, 1.0]])
    """
    for name, value in (("a", a), ("step_size", step_size), ("friction", friction)):
        if not value > 0.0:
            raise ValueError(f"{name} = {value} must be above zero.")
    h = math.sqrt(step_size)
    c = math.exp(-friction * h)
    kick = np.array([0.5 * h * (1.0 + c), c])
    thermal = np.array([0.5 * h, 1.0])
    A = np.array([[1.0, 0.0], [0.0, 0.0]]) + np.outer(kick, [-h * a, 1.0])
    Q = h**2 * s2 * np.outer(kick, kick) + (1.0 - c**2) * temperature * np.outer(thermal, thermal)
    return A, Q


def baoab_stationary_variance(
    a: float, step_size: float, friction: float, temperature: float = 1.0, s2: float = 0.0
) -> float:
    """Stationary variance of x: [T + (eps s2/4) (1 + c)/((1 - c)(1 - eps a/4))] / a.

    Without gradient noise it is T/a at any stable step: the scheme's known merit. The noise's
    share follows from the second-order autoregression x_{k+1} = (1 + c - k) x_k - c x_{k-1} +
    noise of variance (eps/2)^2 (1 + c)^2 s2, with k = (eps/2)(1 + c) a. At c = 0 it is SGLD's.

    Args:
        a: curvature of the negative log density.
        step_size: eps = h^2.
        friction: rate of momentum loss; infinity (c = 0) is allowed.
        temperature: T, 1 by default.
        s2: variance of the gradient's noise, 0 by default.

    Returns:
        The variance.

    Raises:
        ValueError: an argument that is not above zero, or step_size of 4/a or more.

    Example:
        >>> baoab_stationary_variance(a=2.0, step_size=1.0, friction=1.0)
        0.5
        >>> baoab_stationary_variance(a=2.0, step_size=1.0, friction=math.inf, s2=4.0)
        1.5
    """
    for name, value in (("a", a), ("step_size", step_size), ("friction", friction)):
        if not value > 0.0:
            raise ValueError(f"{name} = {value} must be above zero.")
    if step_size * a >= 4.0:
        raise ValueError(f"step_size = {step_size} must be below 4/a = {4.0 / a}.")
    c = math.exp(-friction * math.sqrt(step_size))
    noise = 0.25 * step_size * s2 * (1.0 + c) / ((1.0 - c) * (1.0 - 0.25 * step_size * a))
    return (temperature + noise) / a
