"""Tables of the one-dimensional draws in equation (2) of `bayestune`: quantiles of m(u) N(u; v, 1).

In units of √η, u is an offset, v the view of it, and m the prior of rate β√η. A row holds the
quantiles for one v, at the normal scores of `score_column`. Near v = 0 they are stored as ±r(|u|),
r = (p|u|)^{1/p} up to |u| = 1/p with p = ⌈1/α⌉, in which the prior is flat: the spike, half of it
below any number of float32, is as smooth as the slab. Far from it, where the spike is out of reach,
the law is nearly normal about v and the quantiles of u − v change slowly with v.
"""

from __future__ import annotations

from math import ceil, log, pi

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_fe.finetuning.bayestune.scale_posterior import REACH, invert, log_marginal_density

Array = NDArray[np.float64]

COLUMNS = 4096  # the valley between spike and slab needs them; null weights read 100 kB of them
SMALLEST = 1e-30  # of |u|; at α = 0.01 half of them are smaller, and have mean scales below 1e-28
FAR_ROWS, FAR_BITS = 384, 5  # twelve doublings of v from the edge, 2⁵ rows each
MANTISSA = 23  # bits of a float32 below its exponent
LARGEST_EDGE = 512.0  # of the lattice, in units of √η: a prior that needs more is far too sharp


def _slope(u: float, alpha: float, rate: float) -> float:
    """Differentiate −log m at u > 0, by a central difference; never negative."""
    ends = log_marginal_density(u * np.array([0.999, 1.001]), alpha, rate)
    return float(ends[0] - ends[1]) / (0.002 * u)


def lattice_edge(alpha: float, rate: float) -> float | None:
    """Find the v above which the law lies about v, clear of the spike.

    Args:
        alpha: shape of the prior.
        rate: β√η.

    Returns:
        v, in units of √η; None if it exceeds `LARGEST_EDGE`.
    """
    for edge in np.arange(12.0, LARGEST_EDGE, 4.0):
        pull = _slope(edge, alpha, rate)
        slab = float(log_marginal_density(np.array([edge]), alpha, rate)[0]) + 0.5 * pull**2
        spike = edge - 0.5 * edge**2 - 0.5 * log(2 * pi)  # of u below 1, at most
        if edge - pull > REACH + 4 and spike < slab - 14:
            return float(edge)
    return None


def near_quantiles(alpha: float, rate: float, power: int, views: Array) -> list[Array]:
    """Tabulate the quantiles of ±r(|u|) under m(u) N(u; v, 1), (COLUMNS,) for each view v."""
    start = 1e-12 / max(1.0, rate)  # below it m is a power of u and N is constant
    ends = np.concatenate(
        [np.geomspace(start, 1.0, ceil(40 * -log(start))), np.arange(1.01, views[-1] + 10, 0.01)]
    )
    nodes, weights = np.polynomial.legendre.leggauss(4)
    middle, half = 0.5 * (ends[1:] + ends[:-1]), 0.5 * np.diff(ends)
    points = middle[:, None] + half[:, None] * nodes
    level = log_marginal_density(points, alpha, rate) + np.log(half[:, None] * weights)
    exponent = min(alpha, 1.0)  # mass below u goes as u^exponent
    inner = np.arange(1, 201) / 200
    first = float(log_marginal_density(np.array([start]), alpha, rate)[0]) + log(start / exponent)
    first_masses = np.diff(np.concatenate([[0.0], inner ** (power * exponent)]))
    outer_ends = stretch(ends, power)
    stored = np.concatenate([inner * outer_ends[0], outer_ends[1:]])
    stored = np.concatenate([-stored[::-1], [0.0], stored])
    rows = []
    for v in views:
        sides = [level - 0.5 * (points - side) ** 2 for side in (v, -v)]
        at_zero = first - 0.5 * v**2
        top = max(at_zero, *(side.max() for side in sides))
        outer = [np.exp(side - top).sum(1) for side in sides]
        masses = [np.concatenate([np.exp(at_zero - top) * first_masses, part]) for part in outer]
        rows.append(invert(np.concatenate([masses[1][::-1], masses[0]]), stored, COLUMNS))
    return rows


def far_quantiles(alpha: float, rate: float, view: float) -> Array:
    """Tabulate the quantiles of u − v (COLUMNS,) where the law is one hump near the view v."""
    pull = _slope(view, alpha, rate)
    shift = np.linspace(-pull - REACH - 2, REACH + 2, 4001)
    # So far out log m is nearly straight, and it is costly to compute.
    prior = np.interp(shift, shift[::10], log_marginal_density(view + shift[::10], alpha, rate))
    level = prior - 0.5 * shift**2
    density = np.exp(level - level.max())
    return invert(density[1:] + density[:-1], shift, COLUMNS)


def far_row(cells: Tensor, edge: int) -> Tensor:
    """Choose the far row that serves a view so many lattice cells from 0, above the edge.

    The bits of a float, read as a whole number, grow by 2²³ with every doubling, and nearly evenly
    between: their upper ones are a logarithm that costs a shift.

    Returns:
        The row's number among the far ones, int32, of the shape of `cells`.
    """
    bits = cells.to(torch.float32).view(torch.int32)
    return ((bits - _bits(edge)) >> (MANTISSA - FAR_BITS)).clamp(0, FAR_ROWS - 1)


def far_cells(edge: int) -> Array:
    """Give the lattice index at the middle of each far row's bin (FAR_ROWS,).

    Bins below 64 hold one index.
    """
    steps = np.arange(FAR_ROWS + 1, dtype=np.int32) << (MANTISSA - FAR_BITS)
    first = np.ceil((_bits(edge) + steps).view(np.float32).astype(np.float64))
    return np.asarray(0.5 * (first[:-1] + first[1:] - 1))


def _bits(number: int) -> int:
    return int(np.float32(number).view(np.int32))


def stretch(u: Array, power: int) -> Array:
    """Map |u| to |r|: the p-th root below 1/p, shifted beyond, with one slope where they meet."""
    below = np.minimum(power * u, 1.0) ** (1 / power)
    return np.asarray(below + np.maximum(u - 1 / power, 0.0))


def unstretch(r: Tensor, power: int) -> Tensor:
    """Map |r| back to |u|, the inverse of `stretch`; 0 for |u| below 1e-30."""
    # What float32 holds without a leading bit, below 1e-38, some processors are slow to multiply:
    # without this line an update of mostly null weights took three times as long on one.
    smallest = (power * SMALLEST) ** (1 / power)
    # By squaring: a dozen multiplications, where exp and log would cost more than all the rest.
    beyond, base = (r - 1).clamp_min(0), torch.where(r < smallest, 0.0, r.clamp_max(1))
    result = None
    left = power
    while left:
        if left & 1:
            result = base if result is None else result * base
        left >>= 1
        if left:
            base = base * base
    assert result is not None
    return result * (1 / power) + beyond
