"""Monte Carlo standard errors, and how many of them a healthy run may stray."""

from __future__ import annotations

import numpy as np
from arviz_stats.base import array_stats
from numpy.typing import NDArray
from scipy.stats import norm, t

Array = NDArray[np.float64]

# The chance that one check fails a healthy run, of about fifteen.
FALSE_ALARM = 1e-5
AXES = {"chain_axis": 0, "draw_axis": 1}


def mean_and_error(traces: Array) -> tuple[float, float, float]:
    """Compute the mean of traces (C, S), its Monte Carlo standard error and its ESS."""
    error = float(array_stats.mcse(traces, **AXES, method="mean"))
    return float(traces.mean()), error, float(array_stats.ess(traces, **AXES, method="mean"))


def errors_allowed(num_tests: int = 1, ess: float = float("inf")) -> float:
    """Compute the standard errors that the worst of several means may stray.

    To stray further has the probability of a false alarm. Two-sided, Bonferroni, Student's t: a
    standard error from few effective draws is itself uncertain.

    Example:
        >>> round(errors_allowed(), 2), round(errors_allowed(64, ess=100.0), 2)
        (4.42, 5.65)
    """
    tail = FALSE_ALARM / (2 * max(1, num_tests))
    if not np.isfinite(ess):
        return float(norm.isf(tail))
    return float(t.isf(tail, max(1.0, ess - 1)))


def distance(difference: float, error: float) -> float:
    """Measure a difference in standard errors: 0 of nothing, infinite of what is known exactly."""
    if error == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / error
