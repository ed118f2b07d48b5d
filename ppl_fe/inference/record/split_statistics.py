"""R-hat and effective sample size from the means and sums of squares of parts of the draws.

A part is a chain or half of one. Let part p hold n_p draws of mean m_p, and let m be the mean of
all N draws of the P parts. By the analysis of variance the total sum of squares is that within the
parts plus that between them,

    Σ (x − m)² = Σ_p SS_p + Σ_p n_p (m_p − m)²,

so that nothing but the means and the pooled sum of squares has to be kept of the draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.special import chdtri
from torch import Tensor

LEAST_DRAWS = 4  # of a chain; with fewer ArviZ, too, answers NaN
# Of 100 well-mixed coordinates `most_ess` may take one for slower than it is.
FALSE_ALARM = 0.01


class MomentSummary(NamedTuple):
    """Statistics of each coordinate over all draws of the chosen chains, (D,) each.

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


def grand_mean(means: Tensor, counts: Tensor) -> Tensor:
    """Average parts: Σ_p n_p m_p / N of means (P, ...) and counts (P,); exact if all are equal."""
    weight = counts.reshape(-1, *[1] * (means.dim() - 1))
    # About the first part's mean, so that an offset common to all costs no digits.
    return means[0] + (weight * (means - means[0])).sum(0) / weight.sum()


def between_parts(means: Tensor, counts: Tensor) -> Tensor:
    """Sum the squares between parts, Σ_p n_p (m_p − m)², of means (P, ...) and counts (P,).

    Example:
        >>> between_parts(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 10.0, 10.0])).item()
        20.0
    """
    weight = counts.reshape(-1, *[1] * (means.dim() - 1))
    return (weight * (means - grand_mean(means, counts)).square()).sum(0)


def r_hat_of_parts(within: Tensor, between: Tensor, counts: Sequence[int]) -> Tensor:
    """Compute R-hat (...) from the squares within and between P parts of n_p draws.

    √(((n−1) + B/W)/n) with W = Σ SS_p / (N−P), B = Σ n_p (m_p − m)² / (P−1), and for n the size
    that makes B unbiased for parts of unequal sizes, n = (N − Σ n_p²/N)/(P−1) (Searle, Casella and
    McCulloch, Variance Components, 1992, sect. 3.6). For equal sizes this is Gelman et al.,
    Bayesian Data Analysis, 3rd ed., eq. 11.4. NaN where nothing varies or there is one part.

    Args:
        within: Σ_p SS_p (...).
        between: Σ_p n_p (m_p − m)² (...).
        counts: n_p.

    Example:
        >>> between = between_parts(torch.tensor([0.0, 1.0]), torch.tensor([10.0, 10.0]))
        >>> round(r_hat_of_parts(torch.tensor(18.0), between, [10, 10]).item(), 4)
        1.1832
    """
    total, parts = sum(counts), len(counts)
    if parts < 2:
        return torch.full_like(within, float("nan"))
    ratio = (between / (parts - 1)) / (within / (total - parts))
    size = (total - sum(n * n for n in counts) / total) / (parts - 1)
    return ((size - 1 + ratio) / size).sqrt()


def split_r_hat(draws: Tensor) -> Tensor:
    """Compute split R-hat (...) of draws (C, S, ...): that of the halves of all chains.

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
    between = between_parts(means, means.new_full((len(means),), half))
    return r_hat_of_parts(within, between, [half] * len(means))


def batch_means_ess(variance: Tensor, squares: Tensor, num_batches: int, num_draws: int) -> Tensor:
    """Estimate the ESS (...) by batch means: N·s²/v, capped at N·log₁₀N as ArviZ caps it.

    v = Σ_j b_j (m_j − m)² / (J−1) over the J batches of all chains estimates N times the variance
    of the overall mean m (Gupta and Vats 2020, "Estimating Monte Carlo variance from multiple
    Markov chains": centred on the mean of all chains, so that chains that disagree count). NaN for
    a coordinate that never moved.

    Args:
        variance: s² (...), of all draws.
        squares: Σ_j b_j (m_j − m)² (...).
        num_batches: J, all chains together.
        num_draws: N, all chains together.
    """
    if num_batches < 2:
        return torch.full_like(variance, float("nan"))
    ess = num_draws * variance / (squares / (num_batches - 1))
    # `clamp` keeps NaN, and makes the infinite ESS of batch means all equal the cap.
    return ess.clamp(max=num_draws * math.log10(num_draws))


def most_ess(variance: Tensor, squares: Tensor, num_parts: int, num_draws: int) -> Tensor:
    """Bound the ESS (...) from above by how far the P parts lie apart.

    Batches much shorter than the autocorrelation time make `batch_means_ess` too large: at least
    the number of batches, even of a chain that is stuck. With w the squares between parts long
    enough to be independent, w·ESS/(N·s²) is χ² with P−1 degrees of freedom, so that its quantile
    is a bound, too low for one well-mixed coordinate in a hundred only. Infinite for one part.

    Args:
        variance: s² (...), of all draws.
        squares: w = Σ_p n_p (m_p − m)² (...).
        num_parts: P, halves or whole chains.
        num_draws: N.
    """
    if num_parts < 2:
        return torch.full_like(variance, float("inf"))
    return num_draws * variance * float(chdtri(num_parts - 1, FALSE_ALARM)) / squares


def statistics(
    means: Sequence[Tensor],
    counts: Sequence[int],
    middle: Tensor | None,
    *,
    within: Tensor,
    between_batches: Tensor,
    num_batches: int,
) -> Tensor:
    """Compute mean, sd, R-hat and ESS (4, ...) of C chains whose draws were summed up in parts.

    Args:
        means: one (C, ...) for each part of the chains.
        counts: the number of draws in each part.
        middle: (C, ...), a draw that belongs to no part; counts for mean and sd only.
        within: squares about the parts' means, all chains and parts together (...).
        between_batches: squares of the batch means about the parts' means, likewise (...).
        num_batches: of all chains.
    """
    # A single draw a chain may be a middle one with no part beside it.
    pieces = [*means] + ([] if middle is None else [middle])
    num_chains = len(pieces[0])
    all_means = torch.cat(pieces)
    sizes = all_means.new_tensor([*counts, 1][: len(pieces)]).repeat_interleave(num_chains)
    num_draws = int(sizes.sum())
    mean = grand_mean(all_means, sizes)
    variance = (within + between_parts(all_means, sizes)) / (num_draws - 1)
    if num_draws < LEAST_DRAWS * num_chains:
        r_hat = ess = torch.full_like(variance, float("nan"))
    else:
        num_parts = num_chains * len(means)
        between = between_parts(all_means[:num_parts], sizes[:num_parts])
        each = [count for count in counts for _ in range(num_chains)]
        r_hat = r_hat_of_parts(within, between, each)
        ess = torch.minimum(
            batch_means_ess(variance, between_batches + between, num_batches, num_draws),
            most_ess(variance, between, num_parts, num_draws),
        )
    return torch.stack([mean, variance.sqrt(), r_hat, ess])
