"""The noise-free tempered posterior of y = B A x without sampling, from the spectrum of A A'."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import cumulative_trapezoid


def reduced_rank_llc(M: int, N: int, H: int, *, n_beta: float, gamma: float = 1.0) -> float:
    """Local learning coefficient at w* = 0 for inputs with X'X/n = I, to about six digits.

    The posterior is as in `reduced_rank_gibbs_llc`. Integrating B out leaves
    exp(-gamma/2 |A|^2) det(n beta A A' + gamma I)^(-N/2), which depends on A through the non-zero
    eigenvalues g_1 < ... < g_m of A A' alone, m = min(M, H). With the volume of the matrices
    that share them (Muirhead 1982, theorem 3.2.17), up to a constant,
    Z = integral of prod_i f(g_i) prod_{i<j} (g_j - g_i) over the ordered eigenvalues, with
    f(g) = g^((|M-H|-1)/2) exp(-gamma g/2) (n beta g + gamma)^(-N/2).
    Expanding the product of differences (a Vandermonde determinant) along the largest eigenvalue
    turns Z into nested one-dimensional integrals, one for each set of powers. The coefficient
    is -d log Z / d log(n beta).

    Args:
        M: inputs; A is H x M.
        N: outputs; B is N x H.
        H: hidden units.
        n_beta: number of data times inverse temperature.
        gamma: localisation, 1 by default.

    Returns:
        The coefficient.

    Raises:
        ValueError: a width below 1, or n_beta or gamma not above zero.

    Example:
        >>> round(reduced_rank_llc(8, 4, 3, n_beta=20_000 / math.log(20_000)), 3)
        5.992
    """
    if min(M, N, H) < 1:
        raise ValueError(f"M = {M}, N = {N}, H = {H} must be at least 1.")
    if not (n_beta > 0.0 and gamma > 0.0):
        raise ValueError(f"n_beta = {n_beta} and gamma = {gamma} must be above zero.")
    if M > N:  # L and the prior keep their form under A <-> B'; the smaller M has fewer eigenvalues
        M, N = N, M
    step = 1e-3
    above = _log_normaliser(M, N, H, n_beta * math.exp(step), gamma)
    below = _log_normaliser(M, N, H, n_beta * math.exp(-step), gamma)
    return -(above - below) / (2.0 * step)


def _log_normaliser(M: int, N: int, H: int, n_beta: float, gamma: float) -> float:
    m = min(M, H)
    # In log g every feature has unit scale; the mass left out on the left is e^-30 of it or less.
    u = math.log(200.0 / gamma) + np.linspace(-85.0, 0.0, 8501)
    spacing = float(u[1] - u[0])
    g = np.exp(u)
    log_f = 0.5 * (abs(M - H) + 1) * u - 0.5 * gamma * g - 0.5 * N * np.log(n_beta * g + gamma)
    f = np.exp(log_f)
    # minors[T](x): ordered eigenvalues below x, powers T; the largest takes each power in turn.
    minors: dict[tuple[int, ...], NDArray[np.float64]] = {(): np.ones_like(u)}
    for size in range(1, m + 1):
        for powers in combinations(range(m), size):
            integrand = np.zeros_like(u)
            for k, power in enumerate(powers):
                sign = (-1) ** (size - 1 - k)
                integrand += sign * f * g**power * minors[(*powers[:k], *powers[k + 1 :])]
            # Trapezoid rule with its end correction, which lifts it from second to fourth order.
            area = cumulative_trapezoid(integrand, dx=spacing, initial=0)
            minors[powers] = area - spacing**2 / 12.0 * np.gradient(integrand, spacing)
    return math.log(minors[tuple(range(m))][-1])
