"""Whether chains on their own would select the same weights: a selection's own repeatability.

R-hat and MCSE judge one scale at a time; a selection is a set. Every chain is an independent run of
its own, so the share that the largest means of two chains have in common says how much of a set
another seed would find again. Some 10⁵ weights tell it to within a per cent or so, and a sample of
so many is all that is kept of large networks.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from ppl_fe.finetuning.threshold import largest

MOST_WATCHED = 2**17


class ChainAgreement:
    """Sums of some scales' draws, chain by chain.

    Args:
        watched: (M,) ascending, which scales.
        num_chains: C.

    Example:
        >>> found = ChainAgreement(torch.arange(4), 2)
        >>> found.add(0, slice(0, 4), torch.tensor([9.0, 8.0, 1.0, 2.0]))
        >>> found.add(1, slice(0, 4), torch.tensor([9.0, 1.0, 8.0, 2.0]))
        >>> found.shared(0.5)
        0.5
    """

    def __init__(self, watched: Tensor, num_chains: int) -> None:
        self.watched = watched
        self.sums = torch.zeros(
            num_chains, len(watched), dtype=torch.float64, device=watched.device
        )

    def add(self, chain: int, at: slice, value: Tensor) -> None:
        """Add one draw of a chain: the scales (D',) of the block `at`."""
        ends = self.watched.new_tensor([at.start, at.stop])
        first, after = torch.searchsorted(self.watched, ends).tolist()
        self.sums[chain, first:after] += value[self.watched[first:after] - at.start]

    def shared(self, share: float) -> float:
        """Give what part of the `share` of largest means two chains have in common, on average."""
        count = max(1, round(share * len(self.watched)))
        tops = [largest(sums, count) for sums in self.sums]
        pairs = [int((one & other).sum()) for one, other in combinations(tops, 2)]
        return sum(pairs) / (len(pairs) * count)


def some_weights(size: int, head: list[slice]) -> Tensor:
    """Choose weights outside the head, ascending: all of them, or some 10⁵ at random.

    Args:
        size: D.
        head: places of the fresh head's weights, which are not ranked.

    Example:
        >>> some_weights(5, [slice(3, 4)])
        tensor([0, 1, 2, 4])
    """
    chosen = torch.arange(min(size, MOST_WATCHED))
    if size > MOST_WATCHED:
        generator = torch.Generator().manual_seed(size)
        chosen = torch.unique(torch.randint(size, (MOST_WATCHED,), generator=generator))
    kept = torch.ones_like(chosen, dtype=torch.bool)
    for where in head:
        kept &= (chosen < where.start) | (chosen >= where.stop)
    return chosen[kept]
