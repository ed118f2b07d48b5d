"""Where a ranking is cut: the scores of parameters to the mask of the selected ones.

`cut` selects the scores above a threshold, or a number of the largest; the number is a share of the
parameters (`number_to_select`) or lies where the sorted scores bend (`find_knees`). `outside` says
which parameters are ranked at all.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def number_to_select(sparsity: object, ranked: int) -> int | None:
    """Give round(p·D) of the D ranked parameters, or None for "knee".

    Raises:
        ValueError: no share, or one that selects nothing or everything.

    Example:
        >>> number_to_select(0.005, 1000)
        5
    """
    if sparsity == "knee":
        return None
    if isinstance(sparsity, bool | str) or not isinstance(sparsity, float | int):
        raise ValueError(f"sparsity must be a number in (0, 1) or 'knee', got {sparsity!r}")
    if not 0 < sparsity < 1:
        raise ValueError(f"sparsity must lie between 0 and 1, a share, got {sparsity!r}")
    count = round(sparsity * ranked)
    if not 0 < count < ranked:
        raise ValueError(
            f"sparsity={sparsity} of {ranked} parameters selects {count}; one parameter is "
            f"{1 / ranked:.2g}, all but one {1 - 1 / ranked:.4g}"
        )
    return count


def cut(score: Tensor, kept: Tensor, count: int | None, threshold: float | None) -> Tensor:
    """Select scores above the threshold, or the `count` largest, or those before the knee.

    Args:
        score: (D,), NaN where `kept` is False.
        kept: (D,) bool, the entries outside the head.
        count: how many, or None for "knee"; it does not matter where there is a threshold.
        threshold: select scores above it.

    Returns:
        (D,) bool.

    Raises:
        ValueError: a threshold that selects nothing or everything; no knee.

    Example:
        >>> cut(torch.tensor([0.1, 0.4, 0.2]), torch.ones(3, dtype=torch.bool), 1, None)
        tensor([False,  True, False])
    """
    ranked = int(kept.sum())
    if threshold is not None:
        mask = score > threshold  # NaN, of the head, is not
        above = int(mask.sum())
        if not 0 < above < ranked:
            inside = score[kept.to(score.device)]
            raise ValueError(
                f"threshold={threshold:g} selects {'everything' if above else 'nothing'}, {above} "
                f"of {ranked}; scores run from {inside.min().item():.3g} to "
                f"{inside.max().item():.3g}"
            )
        return mask
    if count is None:
        inside = score[kept.to(score.device)].sort(descending=True).values
        knees = find_knees(inside.double().cpu().numpy())
        if not knees:
            raise ValueError(
                "sparsity='knee': the sorted scores have no bend, so they do not say how many "
                "parameters to select; give a number"
            )
        count = knees[0]
    return largest(score, count)


def largest(score: Tensor, count: int) -> Tensor:
    """Mark exactly `count` entries of largest score, (D,) bool; of equal ones the first in order.

    NaN counts as smaller than any number.

    Example:
        >>> largest(torch.tensor([1.0, 2.0, 1.0, float("nan")]), 2)
        tensor([ True,  True, False, False])
    """
    score = score.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    least = torch.kthvalue(score, len(score) - count + 1).values
    mask = score > least
    ties = (score == least).nonzero()[:, 0]
    mask[ties[: count - int(mask.sum())]] = True
    return mask


def outside(slices: Mapping[str, slice], head: tuple[str, ...]) -> Tensor:
    """Mark the entries outside the head, (D,) bool.

    Example:
        >>> outside({"body": slice(0, 1), "head": slice(1, 3)}, ("head",))
        tensor([ True, False, False])
    """
    kept = torch.ones(max(where.stop for where in slices.values()), dtype=torch.bool)
    for name in head:
        kept[slices[name]] = False
    return kept


SHALLOW = 0.1  # a bend that departs less from the straight line is no knee
CLIFF = 0.5  # of a score's logarithm, from one rank to the next
GRID = 400  # ranks looked at, evenly spread in their logarithm


def find_knees(ranked: NDArray[np.float64]) -> list[int]:
    """Count the entries before each knee of a decreasing curve, the sharpest knee first.

    On log axes, ranks scaled to run from 0 to 1 and scores from 1 down to 0 at their median, a knee
    is a local maximum of how far the curve hangs below its chord (Satopää et al. 2011, "Kneedle"):
    there a steep fall ends and the many that did not move begin. Below the median lies no knee: the
    far end of a sorted curve always falls. Knees less than a tenth deep, or less than a twentieth
    deeper than the curve between them, are left out.

    Args:
        ranked: scores, largest first.

    Example:
        >>> find_knees(np.concatenate([np.full(50, 1.0), np.full(9950, 1e-3)]))
        [50]
    """
    half = len(ranked) // 2
    floor = ranked[half]
    if half < 2 or floor <= 0:
        floor = ranked[ranked > 0].min(initial=np.inf)
    if not 0 < floor < ranked[0]:
        return []
    ranks = np.unique(np.geomspace(1, len(ranked), GRID).round().astype(int))
    height = np.log(np.maximum(ranked, floor) / floor)
    cliffs = np.flatnonzero(np.diff(height) < -CLIFF)[:GRID] + 1  # they lie between grid points
    ranks = np.unique(np.concatenate([ranks, cliffs, cliffs + 1]))
    depth = 1 - np.log(ranks) / np.log(len(ranked)) - height[ranks - 1] / height[0]
    knees: list[tuple[float, int]] = []
    for k in range(1, len(depth) - 1):
        if (
            ranks[k] > half
            or depth[k] < SHALLOW
            or depth[k] <= depth[k - 1]
            or depth[k] < depth[k + 1]
        ):
            continue
        deeper = np.flatnonzero(depth > depth[k])
        left, right = deeper[deeper < k], deeper[deeper > k]
        between = [
            depth[(left[-1] if len(left) else 0) : k].min(),
            depth[k : (right[0] if len(right) else len(depth)) + 1].min(),
        ]
        if depth[k] - max(between) >= SHALLOW / 2:
            knees.append((float(depth[k]), int(ranks[k]) - 1))
    return [count for _, count in sorted(knees, reverse=True)]
