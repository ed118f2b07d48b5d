"""Which share of the strongest pulls the choice of the rows alone would give, and how sure that is.

A gradient is a mean over rows. With half of the batches taken negatively (pulls.py) what all rows
agree on cancels, and what is left is as large as the noise of the rows in the gradient itself. R
ways to halve the batches give R such vectors at no further pass. Let c be the size that the k
strongest of D pulls reach, and m how many entries of the R vectors reach it.

The share. The rows alone bring μ = m/R of D above c. Those above that they did not bring are no
longer among those that they could: V of k are chance where V is to V + D − k as μ is to D,

    V/k = (μ/k) (D − k) / (D − μ).

It takes all below c for weights that nothing pulls; where pulls are about as large as their noise,
some of these are pulled too, and the share comes out a few per cent too large.

Whether it may be all. If nothing pulls at all, gradient and noise are R + 1 vectors of one law.
Down from the largest entry of all of them, each is the gradient's with probability 1/(R + 1). So m,
the noise before the gradient's k-th, is negative binomial, whatever the law of the entries:

    P(so few, or fewer) = P(Binomial(k + m, 1/(R + 1)) ≥ k).

That is for weights that are pulled independently. Weights of a network are pulled together, so that
the R counts scatter more than Poisson's: k and m are divided by their variance over their mean.
"""

from __future__ import annotations

from typing import NamedTuple

from scipy.special import betainc
from torch import Tensor

from ppl_fe.finetuning.bayestune.pulls import least_of

MOSTLY_CHANCE = 0.8  # from this share of the strongest pulls on a note says so
SIGNIFICANT = 0.05


class Chance(NamedTuple):
    """What the choice of the rows alone would give of the strongest pulls.

    share: of them, 0 to 1.
    probability: of a noise that brings so few or fewer, if all were chance.
    """

    share: float
    probability: float

    @property
    def may_be_all(self) -> bool:
        """Whether the data may not pull at all."""
        return self.probability >= SIGNIFICANT

    @property
    def noted(self) -> bool:
        """Whether a note has to say so."""
        return self.may_be_all or self.share >= MOSTLY_CHANCE


def chance_among(pull: Tensor, by_chance: Tensor, count: int) -> Chance:
    """Estimate which share of the `count` strongest pulls the choice of the rows alone would give.

    Args:
        pull: (D,) sizes.
        by_chance: (R, D) sizes of the noise.
        count: k. Where all are chosen, or there is no noise to compare with, nothing is by chance.

    Example:
        >>> import torch
        >>> pull, noise = torch.tensor([1.0, 4.0, 2.0, 0.0]), torch.tensor([0.1, 3.0, 0.2, 0.1])
        >>> chance_among(pull, noise[None], 2)  # 1/2 · (4 − 2)/(4 − 1); P(Binomial(3, 1/2) ≥ 2)
        Chance(share=0.3333333333333333, probability=0.5)
    """
    least = least_of(pull, count)
    if least == 0:
        return Chance(1.0, 1.0)
    if not len(by_chance) or count == len(pull):
        return Chance(0.0, 0.0)
    counts = (by_chance >= least).sum(1).double()
    total, mean = counts.sum().item(), counts.mean().item()
    if total == 0:  # of one weight the binomial law could exclude nothing
        return Chance(0.0, 0.0)
    share = 1.0
    if mean < count:
        share = mean / count * (len(pull) - count) / (len(pull) - mean)
    spread = max(1.0, counts.var().item() / mean) if len(counts) > 1 else 1.0
    tail = betainc(count / spread, total / spread + 1, 1 / (len(counts) + 1))
    return Chance(share, float(tail))
