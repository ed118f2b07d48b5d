"""Errors of means from whole sequences of draws, for scales that change side but rarely.

A group between spike and slab stays on a side for many draws. Batches of √S draws are then shorter
than its memory, and vary less than the run's mean does: the error that they state is about half of
what it is. The sequences of a few groups take little memory, and autocorrelations about the mean of
all chains see the memory in full (Vehtari et al. 2021, sect. 3; Geyer 1992): with W and B the
variances within chains and of their means, γ_t the autocovariance within them, s² that of all,

    ρ_t = 1 − (W − γ_t)/((S−1)/S · W + B),    MCSE² = s² · (−1 + 2 Σ_k P_k)/(CS),

P_k = ρ_{2k} + ρ_{2k+1}, never larger than the one before, up to the first that is negative. A group
that no chain ever saw change states next to nothing, by this as by any account of its draws.

Paper: Rank-normalization, folding, and localization: an improved R-hat, Bayesian Analysis 2021.
"""

from __future__ import annotations

from math import log10

import torch
from torch import Tensor

AT_ONCE = 2**12  # sequences transformed at a time


def sequence_mcse(draws: Tensor) -> Tensor:
    """Estimate the standard errors (G,) of the means of draws (C, S, G).

    Example:
        >>> _ = torch.manual_seed(0)
        >>> walk = torch.randn(2, 1000, 3).cumsum(1) * 0.1     # hardly ever forgets where it was
        >>> bool((sequence_mcse(walk) > 0.3 * walk.std((0, 1))).all())
        True
    """
    parts = [_mcse(part.double()) for part in torch.split(draws, AT_ONCE, -1)]
    return torch.cat(parts).to(draws.dtype)


def _mcse(draws: Tensor) -> Tensor:
    num_chains, length = draws.shape[:2]
    means = draws.mean(1, keepdim=True)
    spectrum = torch.fft.rfft(draws - means, n=2 * length, dim=1)
    covariance = torch.fft.irfft(spectrum.abs().square(), dim=1)[:, :length].mean(0) / length
    within = covariance[0] * length / (length - 1)
    between = means[:, 0].var(0) if num_chains > 1 else torch.zeros_like(within)
    variance = within * (length - 1) / length + between
    correlation = 1 - (within - covariance) / variance
    correlation[0] = 1.0
    pairs = correlation[: length // 2 * 2].unflatten(0, (-1, 2)).sum(1)
    pairs = (pairs * (pairs > 0).cumprod(0)).cummin(0).values
    time = (2 * pairs.sum(0) - 1).clamp_min(1 / log10(num_chains * length))
    error: Tensor = (draws.flatten(0, 1).var(0) * time / (num_chains * length)).sqrt()
    return error
