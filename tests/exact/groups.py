"""Weights that share a Laplace scale: theta_i ~ Laplace(0, lambda), lambda ~ Gamma(alpha, beta)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import erfcx, gammainc, log_ndtr

Array = NDArray[np.float64]

CUT = 1e-9  # of lambda in units of sd: below it the weights are nil and the likelihood is constant


class Group(NamedTuple):
    """Posterior of a group's scale."""

    scale_mean: float  # E[lambda | y]
    share_null: float  # P(lambda < sd/100 | y): the group did not move
    log_evidence: float  # log p(y)


def laplace_gamma_group(observed: ArrayLike, sd: float, alpha: float, beta: float) -> Group:
    """Posterior of lambda for y_i ~ N(theta_i, sd), i of one group, by quadrature over log lambda.

    Given lambda the weights are independent, and the integral of Laplace times Gaussian is closed:
    with v = y/sd, r = sd/lambda and h(x) = exp(x^2/2) Phi(-x),

        p(y_i | lambda) = (r/2 sd) exp(-v^2/2) (h(r - v) + h(r + v)) -> N(y_i; 0, sd) as r -> oo.

    At small alpha most of the prior's mass lies where that limit holds to 1e-9, below `CUT`; there
    it is the Gamma law's own distribution function.

    Args:
        observed: (G,) observations, offsets from the anchor.
        sd: their standard deviation.
        alpha, beta: shape and rate of the Gamma prior.

    Example:
        >>> round(laplace_gamma_group([0.4], sd=0.1, alpha=5.0, beta=50.0).scale_mean, 5)
        0.13187
    """
    v = np.asarray(observed, dtype=np.float64) / sd
    top = (100.0 + 8.0 * alpha) / beta + 40.0 * np.abs(v).max(initial=0.0) * sd
    s = np.linspace(math.log(CUT * sd), math.log(top), 200_001)
    scale = np.exp(s)
    rate = sd / scale
    level = alpha * (s + math.log(beta)) - beta * scale - math.lgamma(alpha)
    for each in v:
        level += np.log(0.5 * rate) + np.logaddexp(_log_h(rate - each), _log_h(rate + each))
    null = -0.5 * len(v) * math.log(2.0 * math.pi)
    peak = max(float(level.max()), null)
    mass = np.exp(level - peak) * (s[1] - s[0])
    below = math.exp(null - peak) * float(gammainc(alpha, beta * scale[0]))
    total = below + float(mass.sum())
    constant = -0.5 * float(v @ v) - len(v) * math.log(sd)
    return Group(
        scale_mean=float((mass * scale).sum()) / total,
        share_null=(below + float(mass[scale < 0.01 * sd].sum())) / total,
        log_evidence=math.log(total) + peak + constant,
    )


def _log_h(x: Array) -> Array:
    right = np.log(0.5 * erfcx(np.maximum(x, 0.0) / math.sqrt(2.0)))
    left = 0.5 * np.minimum(x, 0.0) ** 2 + log_ndtr(-np.minimum(x, 0.0))
    return np.asarray(np.where(x > 0.0, right, left))
