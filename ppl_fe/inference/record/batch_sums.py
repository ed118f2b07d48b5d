"""Sums over half a chain, batch by batch of about √S draws: what running moments add up.

`RunningMoments` keeps them for chains that run side by side, `ScaleMoments` of stage 1 for chains
that run one after another. Complete batches are merged into their half (Chan, Golub and LeVeque
1983): n draws of mean m, and b draws with Σ(x − m) = t, give

    m ← m + t/(n+b),  squares ← squares + Σ(x−m)² − t²/(n+b),  between ← between + t² n/(b(n+b)).

At first m is the half's first draw, so that an offset far greater than the sd costs no digits.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class DrawBatch(NamedTuple):
    """Consecutive draws start ≤ s < stop, the first of them after `before` draws of its half."""

    start: int
    stop: int
    half: int | None  # 0 or 1; None for a middle draw that is in neither
    before: int


def plan_batches(num_samples: int, *, middle_apart: bool = True) -> list[DrawBatch]:
    """Cut S draws into halves, and each half into equal batches of about √S draws.

    Args:
        num_samples: S.
        middle_apart: the middle draw of an odd number is in neither half (default); otherwise in
            the second one.

    Example:
        >>> [(batch.start, batch.stop) for batch in plan_batches(9)]
        [(0, 4), (4, 5), (5, 9)]
        >>> [(batch.start, batch.stop) for batch in plan_batches(9, middle_apart=False)]
        [(0, 4), (4, 6), (6, 9)]
    """
    half = num_samples // 2
    begin = num_samples - half if middle_apart else half
    batches = []
    for number, (first, length) in enumerate([(0, half), (begin, num_samples - begin)]):
        parts = max(1, round(length / num_samples**0.5))
        ends = [length * part // parts for part in range(parts + 1)]
        batches += [
            DrawBatch(first + start, first + stop, number, start)
            for start, stop in pairwise(ends)
            if start < stop
        ]
    middle = [DrawBatch(half, begin, None, 0)] * (begin - half)
    return sorted(batches + middle, key=lambda batch: batch.start)


class HalfSums(NamedTuple):
    """What is kept of a half's draws, (...) each; changed in place.

    mean: of complete batches. squares: about it. between: the squares between batch means.
    batch_sum: Σ(x − mean) over the present batch.
    """

    mean: Tensor
    squares: Tensor
    between: Tensor
    batch_sum: Tensor

    def add(
        self, draw: Tensor, batch: DrawBatch, number: int, memory: Tensor | None = None
    ) -> None:
        """Add a draw, and merge the batch that it completes.

        Args:
            draw: (...).
            batch: the batch that it belongs to.
            number: its own, counted as `batch.start` is.
            memory: (...) to work in; by default fresh.
        """
        mean, squares, between, batch_sum = self
        if batch.before == 0 and number == batch.start:
            mean.copy_(draw)
        deviation = torch.sub(draw, mean, out=memory)
        batch_sum.add_(deviation)
        squares.addcmul_(deviation, deviation)
        if number + 1 == batch.stop:
            length = batch.stop - batch.start
            after = batch.before + length
            between.addcmul_(batch_sum, batch_sum, value=batch.before / (length * after))
            squares.addcmul_(batch_sum, batch_sum, value=-1 / after)
            mean.add_(batch_sum, alpha=1 / after)
            batch_sum.zero_()
