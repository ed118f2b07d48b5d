"""Which parameters were selected, why, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_fe.diagnostics.scale_plots import plot_selection

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHALLOW = 0.1  # a bend that departs less from the straight line is no knee
CLIFF = 0.5  # of a score's logarithm, from one rank to the next
GRID = 400  # ranks looked at, evenly spread in their logarithm


@dataclass(frozen=True, repr=False)
class Selection:
    """What `select_parameters` returns; `finetune(..., mask=selection.mask)` trains it.

    Attributes:
        method: the rule.
        score: (D,) what parameters are ranked by, larger first: the scale's posterior mean, or
            the rule's own. NaN in the head, which is not ranked.
        mask: (D,) bool, the selected ones; False in the head, which is trained anyway.
        slices: name -> the tensor's slice of the vector.
        head: names of the fresh head's tensors.
        scale_mean, scale_sd: (D,) posterior mean and sd of λ; None from rules without scales.
        r_hat, mcse: (D,) of the scale's mean, over halves of chains; None unless measured.
        probability_in_top: (D,) share of draws in which a scale was among the selected number of
            largest ones; None unless counted.
        settings: what was asked for, and the step size and data size used.
        notes: what to know before believing it; read them first.
    """

    method: str
    score: Tensor
    mask: Tensor
    slices: Mapping[str, slice]
    head: tuple[str, ...] = ()
    scale_mean: Tensor | None = None
    scale_sd: Tensor | None = None
    r_hat: Tensor | None = None
    mcse: Tensor | None = None
    probability_in_top: Tensor | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors' names, in the vector's order."""
        return tuple(self.slices)

    @property
    def num_selected(self) -> int:
        """How many entries the mask selects."""
        return int(self.mask.sum())

    @property
    def sparsity(self) -> float:
        """The selected share of the parameters outside the head."""
        return self.num_selected / len(self.ranked)

    @property
    def ranked(self) -> Tensor:
        """(D outside the head,) scores, largest first."""
        return self.score[outside(self.slices, self.head)].sort(descending=True).values

    @property
    def knees(self) -> list[int]:
        """Numbers of parameters before a bend of the sorted scores, the sharpest bend first."""
        return find_knees(self.ranked.double().cpu().numpy())

    def by_layer(self) -> pd.DataFrame:
        """One row a tensor outside the head: `selected`, `size`, `share`, in the vector's order.

        Example:
            >>> mask = torch.tensor([True, False, False])
            >>> slices = {"weight": slice(0, 2), "bias": slice(2, 3)}
            >>> Selection("random", torch.rand(3), mask, slices).by_layer()["selected"].to_dict()
            {'weight': 1, 'bias': 0}
        """
        rows = {
            name: (int(self.mask[where].sum()), where.stop - where.start)
            for name, where in self.slices.items()
            if name not in self.head
        }
        table = pd.DataFrame.from_dict(rows, orient="index", columns=["selected", "size"])
        table.index.name = "tensor"
        table["share"] = table["selected"] / table["size"]
        return table

    def plot(self) -> Figure:
        """The sorted scores on log axes with the knees marked, and the selected share by tensor.

        Raises:
            ImportError: without matplotlib.
        """
        ranked = self.ranked.double().cpu().numpy()
        what = "score" if self.scale_mean is None else "posterior mean of the scale λ"
        return plot_selection(ranked, self.num_selected, self.knees, self.by_layer(), what)

    def __repr__(self) -> str:
        lines = [
            f"Selection(method={self.method!r}, {self.num_selected:,} of {len(self.ranked):,} "
            f"parameters, {100 * self.sparsity:.3g} %)"
        ]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{_escaped(note)}</li>" for note in self.notes)
        table = self.by_layer().to_html(formatters={"share": "{:.2%}".format})
        return f"<p>{_escaped(repr(self).splitlines()[0])}</p><ul>{notes}</ul>{table}"


class StageOneError(FloatingPointError):
    """Stage 1 met a loss or gradient that is not finite.

    Attributes:
        scale_mean: (D,) means of the scales over the draws kept before; None if there were none.
    """

    def __init__(self, message: str, scale_mean: Tensor | None) -> None:
        super().__init__(message)
        self.scale_mean = scale_mean


def outside(slices: Mapping[str, slice], head: tuple[str, ...]) -> Tensor:
    """(D,) bool: the entries outside the head.

    Example:
        >>> outside({"body": slice(0, 1), "head": slice(1, 3)}, ("head",))
        tensor([ True, False, False])
    """
    kept = torch.ones(max(where.stop for where in slices.values()), dtype=torch.bool)
    for name in head:
        kept[slices[name]] = False
    return kept


def largest(score: Tensor, count: int) -> Tensor:
    """(D,) bool: exactly `count` entries of largest score; of equal ones those that come first.

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


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
