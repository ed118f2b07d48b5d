"""Linear regression with unit noise: every quantity of the local tempered posterior, exactly.

L_n(w) = mean_i 1/2 (y_i - x_i'w)^2 + 1/2 log 2 pi, and the posterior is proportional to
exp(-n beta L_n(w) - gamma/2 |w - w*|^2) for any anchor w*, at the minimum or off it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class LinearGaussian(NamedTuple):
    """Exact answers for one anchor; losses are means over the data, all logarithms natural."""

    mean: Array  # (D,)
    covariance: Array  # (D, D)
    anchor_loss: float  # L_n(w*)
    expected_loss: float  # E[L_n(w)]
    wbic: float  # n E[L_n(w)]
    llc: float  # n beta (E[L_n(w)] - L_n(w*))
    free_energy: float  # -log of the integral of exp(-n beta L_n(w)) N(w; w*, I/gamma)


def _loss(inputs: Array, targets: Array, w: Array) -> float:
    return float(0.5 * np.mean((targets - inputs @ w) ** 2) + 0.5 * math.log(2.0 * math.pi))


def linear_gaussian_posterior(
    inputs: Array, targets: Array, anchor: Array, *, gamma: float | Array, beta: float
) -> LinearGaussian:
    """Closed forms for the linear-Gaussian model localised at an anchor.

    With H = X'X/n, G the diagonal matrix of gamma and P = n beta H + G: the mean is
    m = P^-1 (beta X'y + G w*), the covariance P^-1, E[L_n] = L_n(m) + 1/2 tr(H P^-1), and the free
    energy n beta L_n(m) + 1/2 (m - w*)'G(m - w*) + 1/2 log det P - 1/2 log det G.

    Args:
        inputs: (N, D).
        targets: (N,).
        anchor: (D,), w*.
        gamma: localisation, of all weights or (D,) of each.
        beta: inverse temperature of the likelihood; 1/log n for WBIC, 1 for the free energy.

    Returns:
        A `LinearGaussian`.

    Raises:
        ValueError: shapes that do not fit, or gamma or beta that is not above zero.

    Example:
        >>> exact = linear_gaussian_posterior(
        ...     np.array([[1.0], [1.0]]), np.array([0.0, 2.0]), np.zeros(1), gamma=2.0, beta=1.0)
        >>> exact.mean, exact.covariance, round(exact.llc, 12)
        (array([0.5]), array([[0.25]]), -0.5)
    """
    n, d = inputs.shape
    if targets.shape != (n,) or anchor.shape != (d,):
        raise ValueError(
            f"inputs {inputs.shape}, targets {targets.shape}, anchor {anchor.shape}: "
            "give (N, D), (N,) and (D,)."
        )
    each = np.broadcast_to(gamma, (d,))
    if not (each.min() > 0.0 and beta > 0.0):
        raise ValueError(f"gamma = {gamma} and beta = {beta} must be above zero.")
    H = inputs.T @ inputs / n
    precision = n * beta * H + np.diag(each)
    mean = np.linalg.solve(precision, beta * inputs.T @ targets + each * anchor)
    covariance = np.linalg.inv(precision)
    anchor_loss = _loss(inputs, targets, anchor)
    mean_loss = _loss(inputs, targets, mean)
    expected_loss = mean_loss + 0.5 * float(np.trace(H @ covariance))
    pull = 0.5 * float(np.sum(each * (mean - anchor) ** 2))
    log_volume = 0.5 * float(np.linalg.slogdet(precision)[1]) - 0.5 * float(np.log(each).sum())
    return LinearGaussian(
        mean=mean,
        covariance=covariance,
        anchor_loss=anchor_loss,
        expected_loss=expected_loss,
        wbic=n * expected_loss,
        llc=n * beta * (expected_loss - anchor_loss),
        free_energy=n * beta * mean_loss + pull + log_volume,
    )


def checkpoints_with_gaps(
    inputs: Array,
    targets: Array,
    *,
    gamma: float,
    num_checkpoints: int = 8,
    gap: float = 20.0,
    seed: int = 0,
) -> Array:
    """Anchors whose exact order is known, by WBIC at beta = 1/log n and by F at beta = 1.

    Every anchor is w_min + t u with its own random direction u. Both quantities then grow as
    1/2 c t^2 over their value at w_min, with c = gamma^2 n u'P^-1 H P^-1 u at 1/log n for WBIC
    and c = gamma n u'H P^-1 u at beta = 1 for F. Each t is the smallest that puts both at least
    `gap` above the anchor before. The two orders agree; the distance from w_min and the loss
    at the anchor need not follow them. A large gamma keeps the anchors near the minimum.

    Args:
        inputs: (N, D), of full column rank.
        targets: (N,).
        gamma: localisation.
        num_checkpoints: how many anchors, 8 by default.
        gap: least difference between neighbours in nats, 20 by default: far above the error of
            a good sampler, so that a wrong order is a wrong sampler.
        seed: chooses the directions.

    Returns:
        (num_checkpoints, D), best first; the first is the minimum of the loss. Both differences
        are at least `gap` up to rounding.

    Raises:
        numpy.linalg.LinAlgError: inputs are not of full column rank.

    Example:
        >>> x, y = np.ones((100, 1)), np.zeros(100)
        >>> anchors = checkpoints_with_gaps(x, y, gamma=10.0, num_checkpoints=3)
        >>> beta = 1 / math.log(100)
        >>> wbic = [linear_gaussian_posterior(x, y, a, gamma=10.0, beta=beta).wbic for a in anchors]
        >>> np.diff(wbic).round(2)  # here the gaps of F are the tighter, and are 20
        array([21.87, 21.87])
    """
    n, d = inputs.shape
    H = inputs.T @ inputs / n
    minimum = np.linalg.solve(H, inputs.T @ targets / n)
    tempered = np.linalg.inv(n / math.log(n) * H + gamma * np.eye(d))
    full = np.linalg.inv(n * H + gamma * np.eye(d))
    wbic_form = gamma**2 * n * tempered @ H @ tempered
    free_energy_form = gamma * n * H @ full
    directions = np.random.default_rng(seed).standard_normal((num_checkpoints, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    anchors = np.tile(minimum, (num_checkpoints, 1))
    wbic_rise = free_energy_rise = 0.0
    for k in range(1, num_checkpoints):
        u = directions[k]
        c_wbic = float(u @ wbic_form @ u)
        c_free_energy = float(u @ free_energy_form @ u)
        squared = 2.0 * max((wbic_rise + gap) / c_wbic, (free_energy_rise + gap) / c_free_energy)
        anchors[k] += math.sqrt(squared) * u
        wbic_rise, free_energy_rise = 0.5 * c_wbic * squared, 0.5 * c_free_energy * squared
    return anchors
