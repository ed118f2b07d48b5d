"""R-hat and effective sample size from the means and sums of squares of groups of draws.

A group is a chain or a part of one. Let group g hold n_g draws of mean m_g, and let m be the mean
of all N draws of the G groups. By the analysis of variance the total sum of squares is that within
the groups plus that between them,

    Σ (x − m)² = Σ_g SS_g + Σ_g n_g (m_g − m)²,

so that nothing but the means and the pooled sum of squares has to be kept of the draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from scipy.special import chdtri
from torch import Tensor

LEAST_DRAWS = 4  # of a chain; with fewer ArviZ, too, answers NaN
# Of 100 well-mixed coordinates one may be held for slower than it is by `least_ess`.
FALSE_ALARM = 0.01


class MomentSummary(NamedTuple):
    """What all draws of the chosen chains say of each coordinate, (D,) each.

    mean, sd: of all draws, sd with N−1. r_hat: split, or of whole chains where `is_split` is
    false. ess: effective sample size of the mean.
    """

    mean: Tensor
    sd: Tensor
    r_hat: Tensor
    ess: Tensor
    is_split: bool

    @property
    def mcse(self) -> Tensor:
        """Monte Carlo standard error of the mean (D,), sd/√ess; NaN where the ESS is."""
        return self.sd / self.ess.sqrt()


class Batch(NamedTuple):
    """Consecutive draws start ≤ s < stop, the first of them after `before` draws of its half."""

    start: int
    stop: int
    half: int | None  # 0 or 1; None for the middle draw of an odd number
    before: int


def plan_batches(num_samples: int) -> list[Batch]:
    """The batches of S draws: each half in equal parts of about √S draws, the middle one alone.

    Example:
        >>> [(batch.start, batch.stop) for batch in plan_batches(9)]
        [(0, 4), (4, 5), (5, 9)]
    """
    half = num_samples // 2
    parts = max(1, round(half / num_samples**0.5))
    ends = [half * part // parts for part in range(parts + 1)]
    batches = [
        Batch(offset + start, offset + stop, number, start)
        for number, offset in ((0, 0), (1, num_samples - half))
        for start, stop in pairwise(ends)
        if start < stop
    ]
    middle = [Batch(half, half + 1, None, 0)] * (num_samples % 2)
    return sorted(batches + middle, key=lambda batch: batch.start)


def grand_mean(means: Tensor, counts: Tensor) -> Tensor:
    """Σ_g n_g m_g / N of means (G, ...) and counts (G,) -> (...); exact where all are equal."""
    weight = counts.reshape(-1, *[1] * (means.dim() - 1))
    # About the first group's mean, so that an offset common to all costs no digits.
    return means[0] + (weight * (means - means[0])).sum(0) / weight.sum()


def between_groups(means: Tensor, counts: Tensor) -> Tensor:
    """Σ_g n_g (m_g − m)² of means (G, ...) and counts (G,) -> (...).

    Example:
        >>> between_groups(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 10.0, 10.0])).item()
        20.0
    """
    weight = counts.reshape(-1, *[1] * (means.dim() - 1))
    return (weight * (means - grand_mean(means, counts)).square()).sum(0)


def grouped_r_hat(means: Tensor, counts: Tensor, within: Tensor) -> Tensor:
    """R-hat of groups of n_g draws, their means (G, ...) and pooled squares within (...) -> (...).

    √(((n−1) + B/W)/n) with W = Σ SS_g / (N−G), B = Σ n_g (m_g − m)² / (G−1), and for n the size
    that makes B unbiased for groups of unequal sizes, n = (N − Σ n_g²/N)/(G−1) (Searle, Casella
    and McCulloch, Variance Components, 1992, sect. 3.6). For equal sizes this is Gelman et al.,
    Bayesian Data Analysis, 3rd ed., eq. 11.4. NaN where nothing varies or there is one group.

    Example:
        >>> means, sizes = torch.tensor([0.0, 1.0]), torch.tensor([10.0, 10.0])
        >>> round(grouped_r_hat(means, sizes, torch.tensor(18.0)).item(), 4)
        1.1832
    """
    total, groups = counts.sum(), len(counts)
    variance_within = within / (total - groups)
    variance_between = between_groups(means, counts) / (groups - 1)
    size = (total - counts.square().sum() / total) / (groups - 1)
    return ((size - 1 + variance_between / variance_within) / size).sqrt()


def split_r_hat(draws: Tensor) -> Tensor:
    """Split R-hat of draws (C, S, ...) -> (...): chains cut in half, `grouped_r_hat` of the halves.

    Without rank normalisation; equal to ArviZ's method "split", and defined for a single chain,
    too. NaN where there are fewer than four draws.

    Example:
        >>> torch.manual_seed(0) is None
        False
        >>> bool(split_r_hat(torch.randn(4, 1000)) < 1.01)
        True
    """
    if draws.shape[1] < LEAST_DRAWS:
        return torch.full(draws.shape[2:], float("nan"))
    half = draws.shape[1] // 2
    halves = torch.cat([draws[:, :half], draws[:, -half:]]).double()
    means = halves.mean(1)
    within = (halves - means[:, None]).square().sum((0, 1))
    return grouped_r_hat(means, means.new_full((len(means),), half), within)


def batch_means_ess(variance: Tensor, squares: Tensor, num_batches: int, num_draws: int) -> Tensor:
    """ESS by batch means, N·s²/v capped at N·log₁₀N as ArviZ caps it -> (...).

    v = Σ_j b_j (m_j − m)² / (J−1) over the J batches of all chains estimates N times the variance
    of the overall mean m (Gupta and Vats 2020, "Estimating Monte Carlo variance from multiple
    Markov chains": centred on the mean of all chains, so that chains that disagree count).

    Args:
        variance: s² (...), of all draws.
        squares: Σ_j b_j (m_j − m)² (...).
        num_batches: J, all chains together.
        num_draws: N, all chains together.

    NaN for a coordinate that never moved.
    """
    if num_batches < 2:
        return torch.full_like(variance, float("nan"))
    ess = num_draws * variance / (squares / (num_batches - 1))
    # `clamp` keeps NaN, and makes the infinite ESS of batch means all equal the cap.
    return ess.clamp(max=num_draws * math.log10(num_draws))


def most_ess(variance: Tensor, squares: Tensor, num_groups: int, num_draws: int) -> Tensor:
    """The most that the ESS can be, given how far the G longest groups lie apart -> (...).

    Batches much shorter than the autocorrelation time make `batch_means_ess` too large: at least
    the number of batches, even of a chain that is stuck. With w the squares between groups long
    enough to be independent, w·ESS/(N·s²) is χ² with G−1 degrees of freedom, so that its quantile
    bounds the ESS from above, too low for one well-mixed coordinate in a hundred only.
    Infinite where there is one group.
    """
    if num_groups < 2:
        return torch.full_like(variance, float("inf"))
    return num_draws * variance * float(chdtri(num_groups - 1, FALSE_ALARM)) / squares


def statistics(
    means: Sequence[Tensor],
    counts: Sequence[int],
    middle: Tensor | None,
    *,
    within: Tensor,
    between_batches: Tensor,
    num_batches: int,
) -> Tensor:
    """Mean, sd, R-hat and ESS (4, ...) of C chains whose draws were summed up in parts.

    Args:
        means, counts: one (C, ...) and one number of draws for each part of the chains.
        middle: (C, ...), a draw that belongs to no part; counts for mean and sd only.
        within: squares about the parts' means, all chains and parts together (...).
        between_batches: squares of the batch means about the parts' means, likewise (...).
        num_batches: of all chains.
    """
    # A single draw a chain may be a middle one with no part beside it.
    parts = [*means] + ([] if middle is None else [middle])
    num_chains = len(parts[0])
    groups = torch.cat(parts)
    sizes = groups.new_tensor([*counts, 1][: len(parts)]).repeat_interleave(num_chains)
    num_draws = int(sizes.sum())
    mean = grand_mean(groups, sizes)
    variance = (within + between_groups(groups, sizes)) / (num_draws - 1)
    if num_draws < LEAST_DRAWS * num_chains:
        r_hat = ess = torch.full_like(variance, float("nan"))
    else:
        num_groups = num_chains * len(means)
        groups, sizes = groups[:num_groups], sizes[:num_groups]
        between = between_groups(groups, sizes)
        r_hat = grouped_r_hat(groups, sizes, within)
        ess = torch.minimum(
            batch_means_ess(variance, between_batches + between, num_batches, num_draws),
            most_ess(variance, between, num_groups, num_draws),
        )
    return torch.stack([mean, variance.sqrt(), r_hat, ess])
