"""Split R-hat for many coordinates at once."""

from __future__ import annotations

import torch
from torch import Tensor


def split_r_hat(draws: Tensor) -> Tensor:
    """Split R-hat of draws (C, S, ...) -> (...): √(((n−1)/n W + B/n)/W), chains cut in half.

    The classic statistic (Gelman et al., Bayesian Data Analysis, 3rd ed., eq. 11.4), without rank
    normalisation; equal to ArviZ's method "split". NaN where there are fewer than four draws.

    Example:
        >>> torch.manual_seed(0) is None
        False
        >>> bool(split_r_hat(torch.randn(4, 1000)) < 1.01)
        True
    """
    half = draws.shape[1] // 2
    if half < 2:
        return torch.full(draws.shape[2:], float("nan"))
    halves = torch.cat([draws[:, :half], draws[:, -half:]]).double()
    within = halves.var(1).mean(0)
    between = half * halves.mean(1).var(0)
    return (((half - 1) / half * within + between / half) / within).sqrt()
