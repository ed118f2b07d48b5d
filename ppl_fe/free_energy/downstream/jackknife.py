"""Error bars over the labels, for criteria that are one number of all of them."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite, nan, sqrt

import torch
from torch import Tensor

NUM_GROUPS = 10


def jackknife_error(statistic: Callable[[Tensor], float], count: int) -> float:
    """Estimate a statistic's standard error by leaving out a tenth of the rows at a time.

    √((g − 1)/g · Σ_j (θ_j − θ̄)²) over g groups drawn once at random, θ_j without the j-th (Shao &
    Tu 1995, The Jackknife and Bootstrap, 2.3).

    Args:
        statistic: of the rows of these indices.
        count: N, the number of rows.

    Returns:
        NaN where there are fewer than three rows, or the statistic of some group is not finite.

    Example:
        >>> x = torch.arange(10.0)
        >>> error = jackknife_error(lambda rows: x[rows].mean().item(), 10)
        >>> abs(error - x.std().item() / 10**0.5) < 1e-6                       # one row a group
        True
    """
    if count < 3:
        return nan
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    number = min(NUM_GROUPS, count)
    group = torch.arange(count) % number
    values = [statistic(order[group != j].sort().values) for j in range(number)]
    if not all(map(isfinite, values)):
        return nan
    mean = sum(values) / number
    return sqrt((number - 1) / number * sum((value - mean) ** 2 for value in values))
