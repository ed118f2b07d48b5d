"""Which parameters were selected, why, and how sure that is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from ppl_fe.diagnostics.scale_plots import plot_selection
from ppl_fe.finetuning.cuts import outside
from ppl_fe.finetuning.knees import find_knees
from ppl_fe.finetuning.selection_format import VECTORS, read_fields, write_fields
from ppl_fe.networks.flat import FlatNetwork


@dataclass(frozen=True, repr=False)
class Selection:
    """What `select_parameters` returns; `finetune(..., mask=selection.mask)` trains it.

    Attributes:
        method: the rule.
        score: (D,) what parameters are ranked by, larger first: the scale's posterior mean, that
            of another prior (`settings["score"]`), or the rule's own. NaN in the head, which is not
            ranked.
        mask: (D,) bool, the selected ones; False in the head, which is trained anyway.
        slices: name -> the tensor's slice of the vector.
        head: names of the fresh head's tensors.
        scale_mean, scale_sd: (D,) posterior mean and sd of λ; None from rules without scales.
        r_hat, mcse: (D,) of the score as a posterior mean, over halves of chains; None unless
            measured.
        probability_in_top: (D,) share of draws in which a scale was among the selected number of
            largest ones; None unless counted.
        settings: what was asked for, and the step size and data size used.
        notes: what to know before believing it; read them first.
        base_hash: SHA-256 of the pretrained weights and buffers outside the head.
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
    base_hash: str = ""

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
            >>> import torch
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

    def to_dataframe(self) -> pd.DataFrame:
        """One row a parameter (D,): `tensor`, `selected`, `score`, and what else was measured.

        Columns `scale_mean`, `scale_sd`, `r_hat`, `mcse` and `probability_in_top` are there where
        the rule gives them. About 50 bytes a parameter.

        Example:
            >>> import torch
            >>> slices = {"weight": slice(0, 2), "bias": slice(2, 3)}
            >>> mask = torch.tensor([True, False, False])
            >>> found = Selection("random", torch.rand(3), mask, slices)
            >>> found.to_dataframe()[["tensor", "selected"]].values.tolist()
            [['weight', True], ['weight', False], ['bias', False]]
        """
        sizes = [where.stop - where.start for where in self.slices.values()]
        codes = np.repeat(np.arange(len(sizes)), sizes)
        columns: dict[str, Any] = {"tensor": np.array(list(self.slices), dtype=object)[codes]}
        for column, name in {"selected": "mask", **{name: name for name in VECTORS}}.items():
            values = getattr(self, name)
            if values is not None:
                columns[column] = values.cpu().numpy()
        table = pd.DataFrame(columns)
        table.index.name = "parameter"
        return table

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything as one safetensors file, for `fe.load_selection(path, network)`.

        4 bytes a parameter for each vector (D,) that is there, in single precision. The file is
        written aside and renamed, so that an interrupted write leaves the old one.

        Raises:
            ValueError: made by hand, without `base_hash`.
        """
        write_fields(vars(self), path)

    def plot(self) -> NDArray[Any]:
        """The sorted scores on log axes with the knees marked, and the selected share by tensor.

        Returns:
            (2,) axes, in a new figure: `selection.plot()[0].figure`.

        Raises:
            ImportError: without matplotlib.
        """
        ranked = self.ranked.double().cpu().numpy()
        what = "score" if self.scale_mean is None else "posterior mean of the scale λ"
        if self.settings.get("score", "scale") != "scale":  # of another prior
            what = f"posterior mean of {self.settings['score']}"
        return plot_selection(ranked, self.num_selected, self.knees, self.by_layer(), what)

    def __repr__(self) -> str:
        rule = f"method={self.method!r}"
        if "prior" in self.settings:  # another than BayesTune's
            rule = f"prior={self.settings['prior']!r} by BAOAB"
        lines = [
            f"Selection({rule}, {self.num_selected:,} of {len(self.ranked):,} "
            f"parameters, {100 * self.sparsity:.3g} %)"
        ]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        table = self.by_layer().to_html(formatters={"share": "{:.2%}".format})
        return f"<p>{escape(repr(self).splitlines()[0])}</p><ul>{notes}</ul>{table}"


def load_selection(path: str | os.PathLike[str], network: FlatNetwork) -> Selection:
    """Read a file of `Selection.save`, for the network that it was made on and no other.

    Args:
        path: the file.
        network: the pretrained network; its head may hold anything.

    Returns:
        The selection, its tensors on the network's device.

    Raises:
        FileNotFoundError: there is no such file.
        SelectionError: a damaged file, another architecture, other weights outside the head.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from ppl_fe.finetuning.selection import select_parameters
        >>> network = FlatNetwork(torch.nn.Linear(9, 1))
        >>> data = (torch.zeros(2, 9), torch.tensor([0.0, 1.0]))
        >>> made = select_parameters(
        ...     network, data, likelihood="normal", sparsity=0.1, method="magnitude")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made.save(f"{folder}/selection.safetensors")
        ...     load_selection(f"{folder}/selection.safetensors", network)
        Selection(method='magnitude', 1 of 10 parameters, 10 %)
    """
    return Selection(**read_fields(path, network))
