"""Where a sorted curve bends: how many parameters stand out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SHALLOW = 0.1  # a bend that departs less from the straight line is no knee
CLIFF = 0.5  # of a score's logarithm, from one rank to the next
GRID = 400  # ranks looked at, evenly spread in their logarithm


def find_knees(ranked: NDArray[np.float64]) -> list[int]:
    """Numbers of entries before each knee of a decreasing curve, the sharpest knee first.

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
