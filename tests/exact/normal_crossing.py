"""The normal crossing f(x; w) = w1^a w2^b x: the local tempered posterior by quadrature.

Noise-free data, y = 0, so that L(w) = 1/2 m2 (w1^a w2^b)^2 (+ const) with m2 the mean of x^2 over
the sample; the posterior is proportional to exp(-n beta L(w) - gamma/2 (w1^2 + w2^2)), w* = 0.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class NormalCrossing(NamedTuple):
    """Moments of the local tempered posterior."""

    llc: float  # n beta E[L - L(0)]
    loss_sd: float  # standard deviation of n beta L
    second_moments: NDArray[np.float64]  # (2,): E[w1^2], E[w2^2]; the means are zero


def normal_crossing_posterior(
    a: int, b: int, *, n_beta: float, gamma: float, m2: float = 1.0, num_nodes: int = 801
) -> NormalCrossing:
    """Posterior moments by the trapezoid rule in (log |w1|, log |w2|).

    The density is even in both weights, so the positive quadrant is enough. There the substitution
    w = e^u turns the cross-shaped ridge, whose width is about 1/sqrt(n beta), into a smooth bump
    of unit scale, on which the rule converges exponentially.

    Args:
        a: exponent of w1, at least 0.
        b: exponent of w2, at least 0.
        n_beta: number of data times inverse temperature.
        gamma: localisation.
        m2: mean of x^2 over the sample; 1 is its expectation for x ~ N(0, 1).
        num_nodes: nodes along each axis. 801 is good to 1e-8; double it to see that.

    Returns:
        A `NormalCrossing`.

    Raises:
        ValueError: negative or both-zero exponents, or a number that is not above zero.

    Example:
        >>> exact = normal_crossing_posterior(1, 0, n_beta=3.0, gamma=1.0)  # w1 ~ N(0, 1/4)
        >>> round(exact.llc, 9), exact.second_moments.round(9)
        (0.375, array([0.25, 1.  ]))
    """
    _check_exponents(a, b)
    if not (n_beta > 0.0 and gamma > 0.0 and m2 > 0.0):
        raise ValueError(f"n_beta = {n_beta}, gamma = {gamma}, m2 = {m2} must be above zero.")
    # Left end: the mass left out is of order e^-40. Right end: 13 prior standard deviations.
    u = math.log(13.0 / math.sqrt(gamma)) + np.linspace(-40.0, 0.0, num_nodes)
    # The ridge falls off over |delta u| of about 1/a, far wider than the spacing.
    energy = 0.5 * n_beta * m2 * np.exp(2.0 * (a * u[:, None] + b * u[None, :]))
    log_axis = u - 0.5 * gamma * np.exp(2.0 * u)
    weight = np.exp(log_axis[:, None] + log_axis[None, :] - energy)
    weight /= weight.sum()
    llc = float(np.sum(weight * energy))
    square = np.exp(2.0 * u)
    return NormalCrossing(
        llc=llc,
        loss_sd=math.sqrt(float(np.sum(weight * (energy - llc) ** 2))),
        second_moments=np.array([weight.sum(axis=1) @ square, weight.sum(axis=0) @ square]),
    )


def normal_crossing_learning_coefficient(a: int, b: int) -> float:
    """Learning coefficient 1/(2 max(a, b)) at the origin, the limit of large n beta.

    If a = b the multiplicity is 2 and the local estimate nears it as slowly as 1/log(n beta).

    Args:
        a: exponent of w1, at least 0.
        b: exponent of w2, at least 0.

    Returns:
        The coefficient (Watanabe 2009, section 3).

    Raises:
        ValueError: negative or both-zero exponents.

    Example:
        >>> normal_crossing_learning_coefficient(2, 1)
        0.25
    """
    _check_exponents(a, b)
    return 1.0 / (2.0 * max(a, b))


def _check_exponents(a: int, b: int) -> None:
    if min(a, b) < 0 or max(a, b) == 0:
        raise ValueError(f"a = {a}, b = {b}: both must be at least 0, one above 0.")
