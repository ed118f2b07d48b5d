"""Error bars of Monte Carlo means, computed apart from every diagnostics library."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def z_score(estimate: float, truth: float, mcse: float) -> float:
    """Distance of an estimate from the truth, in standard errors: (estimate - truth) / mcse.

    Args:
        estimate: the Monte Carlo estimate.
        truth: the exact value.
        mcse: the standard error of the estimate; combine several errors in quadrature first.

    Returns:
        The signed score; standard normal where the sampler is right and the error bar honest.

    Raises:
        ValueError: a number is not finite, or mcse is not above zero (a chain that never moved
            has no error bar, and must not pass a test).

    Example:
        >>> z_score(1.5, 1.0, 0.25)
        2.0
    """
    for name, value in (("estimate", estimate), ("truth", truth), ("mcse", mcse)):
        if not math.isfinite(value):
            raise ValueError(f"{name} = {value} is not finite; find out where it was lost.")
    if mcse <= 0.0:
        raise ValueError(f"mcse = {mcse} must be above zero; draws that never vary prove nothing.")
    return (estimate - truth) / mcse


def mcse_of_mean(draws: NDArray[np.float64]) -> float:
    """Standard error of the mean of correlated draws, by non-overlapping batch means.

    Each chain is cut into floor(sqrt(S)) batches of equal length (the oldest left-over draws
    are dropped). With K batches in all, of means m_k and mean m, the squared error is
    sum (m_k - m)^2 / (K (K - 1)) (Flegal & Jones 2010). The spread is taken about the mean
    over all chains, so chains that disagree widen the error bar. A batch must be longer than
    the autocorrelation time: below that the error comes out too small.

    Args:
        draws: (C, S) values of one scalar.

    Returns:
        The standard error of `draws.mean()`.

    Raises:
        ValueError: draws is not a finite (C, S) array with S of at least 16.

    Example:
        >>> draws = np.tile([0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0], (1, 2))
        >>> round(mcse_of_mean(draws), 6)  # batch means 0, 1, 0, 1
        0.288675
    """
    draws = np.asarray(draws, dtype=np.float64)
    if draws.ndim != 2 or draws.shape[1] < 16:
        raise ValueError(f"draws has shape {draws.shape}; give (C, S) with S of at least 16.")
    if not np.isfinite(draws).all():
        raise ValueError("draws holds NaN or infinity; leave the broken chain out by name.")
    num_chains, num_samples = draws.shape
    num_batches = math.isqrt(num_samples)
    length = num_samples // num_batches
    kept = draws[:, num_samples - num_batches * length :]
    means = kept.reshape(num_chains * num_batches, length).mean(axis=1)
    return float(means.std(ddof=1) / math.sqrt(means.size))
