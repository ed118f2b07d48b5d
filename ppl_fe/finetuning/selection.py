"""Which parameters were selected, why, and how sure that is; and the file that keeps it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_fe.files.safetensors_io import parsed, read_checked, text, write_checked
from ppl_fe.finetuning.threshold import find_knees, outside
from ppl_fe.networks.flat import FlatNetwork
from ppl_fe.networks.hashes import network_hash
from ppl_fe.networks.matching import listed
from ppl_fe.plots.selection_plots import plot_selection
from ppl_fe.renamed import warn_of_old_name

FORMAT = "ppl-fe selection 1"
VECTORS = ("score", "scale_mean", "scale_sd", "r_hat", "mcse", "probability_in_top")


class SelectionError(ValueError):
    """A selection file that cannot be read, or that belongs to other weights.

    Example:
        >>> issubclass(SelectionError, ValueError)
        True
    """


@dataclass(frozen=True, repr=False)
class Selection:
    """What `select_parameters` returns; `finetune(..., mask=selection.mask)` trains it.

    Attributes:
        rule: the rule's name.
        score: (D,) what parameters are ranked by, larger first: the scale's posterior mean, that
            of another prior (`settings["score"]`), or the rule's own. NaN where a parameter is not
            ranked: in the head, and where it may not be chosen (`settings["parameters"]`).
        mask: (D,) bool, the selected ones; False in the head, which is trained anyway.
        slices: name -> the tensor's slice of the vector.
        head: names of the fresh head's tensors.
        scale_mean, scale_sd: (D,) posterior mean and sd of λ; None from rules without scales.
        r_hat, mcse: (D,) of the score as a posterior mean, over halves of chains; None unless
            measured.
        probability_in_top: (D,) share of draws in which a scale was among the selected number of
            largest ones; None unless counted.
        settings: what was asked for, and what was used: step size, data size and so on.
        notes: what to know before believing it; read them first.
        base_hash: SHA-256 of the pretrained weights and buffers outside the head.
    """

    rule: str
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
    def method(self) -> str:
        """Give `rule` by its former name, for one release."""
        warn_of_old_name("Selection.method", "Selection.rule")
        return self.rule

    @property
    def names(self) -> tuple[str, ...]:
        """List the tensors' names, in the vector's order."""
        return tuple(self.slices)

    @property
    def num_selected(self) -> int:
        """Count the entries that the mask selects."""
        return int(self.mask.sum())

    @property
    def sparsity(self) -> float:
        """Give the selected share of the parameters that may be chosen."""
        return self.num_selected / len(self.ranked)

    @property
    def ranked(self) -> Tensor:
        """Sort the scores of the parameters that may be chosen, largest first."""
        scores = self.score[outside(self.slices, self.head)]
        return scores[~scores.isnan()].sort(descending=True).values

    @property
    def knees(self) -> list[int]:
        """Count the parameters before each bend of the sorted scores, the sharpest bend first."""
        return find_knees(self.ranked.double().cpu().numpy())

    def by_layer(self) -> pd.DataFrame:
        """Count by tensor outside the head: `selected`, `size`, `share`, in the vector's order.

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
        """List every parameter (D,): `tensor`, `selected`, `score`, and what else was measured.

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
        if not self.base_hash:
            raise ValueError("a selection made by hand has no base_hash: set it to bind the file")
        tensors = {name: getattr(self, name) for name in VECTORS}
        tensors = {name: vector for name, vector in tensors.items() if vector is not None}
        tensors["indices"] = self.mask.nonzero().squeeze(1)
        about = {
            "method": self.rule,
            "sizes": _sizes(self.slices),
            "head": self.head,
            "settings": dict(self.settings),
            "notes": self.notes,
            "base_hash": self.base_hash,
        }
        write_checked(path, tensors, about, FORMAT)

    def plot(self) -> NDArray[Any]:
        """Draw the sorted scores on log axes with their knees, and the selected share by tensor.

        Returns:
            (2,) axes, in a new figure of pyplot's, which `plt.savefig("scales.png")` writes.

        Raises:
            ImportError: without matplotlib.
        """
        ranked = self.ranked.double().cpu().numpy()
        what = "score" if self.scale_mean is None else "posterior mean of the scale λ"
        if self.settings.get("score", "scale") != "scale":  # of another prior
            what = f"posterior mean of {self.settings['score']}"
        return plot_selection(ranked, self.num_selected, self.knees, self.by_layer(), what)

    def __repr__(self) -> str:
        rule = f"rule={self.rule!r}"
        if "prior" in self.settings:  # another than BayesTune's
            rule = f"prior={self.settings['prior']!r} by BAOAB"
        asked = self.settings.get("parameters")
        among = "" if asked is None else f" of {asked!r}"
        lines = [
            f"Selection({rule}, {self.num_selected:,} of {len(self.ranked):,} "
            f"parameters{among}, {100 * self.sparsity:.3g} %)"
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
        >>> from ppl_fe.finetuning.select import select_parameters
        >>> network = FlatNetwork(torch.nn.Linear(9, 1))
        >>> data = (torch.zeros(2, 9), torch.tensor([0.0, 1.0]))
        >>> made = select_parameters(
        ...     network, data, likelihood="normal", sparsity=0.1, rule="magnitude")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made.save(f"{folder}/selection.safetensors")
        ...     load_selection(f"{folder}/selection.safetensors", network)
        Selection(rule='magnitude', 1 of 10 parameters, 10 %)
    """
    tensors, about = read_checked(path, FORMAT, "selection", SelectionError)
    return parsed(
        path, "selection", SelectionError, lambda: _selection(path, network, tensors, about)
    )


def _selection(
    path: str | os.PathLike[str],
    network: FlatNetwork,
    tensors: Mapping[str, Tensor],
    about: Mapping[str, Any],
) -> Selection:
    """Build a selection from a file's fields.

    Raises:
        SelectionError: it belongs to another architecture or to other weights.
        ValueError: fields that do not fit together. One that is missing or of another type raises
            what it happens to raise.
    """
    own, made = _sizes(network.slices), [(text(name), int(size)) for name, size in about["sizes"]]
    if made != own:
        missing = [f"{name} ({size}) is missing" for name, size in made if (name, size) not in own]
        extra = [f"{name} ({size}) is unexpected" for name, size in own if (name, size) not in made]
        wrong = listed([*missing, *extra]) or "its tensors come in another order"
        raise SelectionError(f"{path} belongs to another architecture: {wrong}")
    head = tuple(text(name) for name in about["head"])
    if network_hash(network, head) != text(about["base_hash"]):
        raise SelectionError(
            f"{path} belongs to other weights than the network's (or to another dtype): load the "
            "pretrained checkpoint it was made on, whose file may have changed since, or select "
            "again on this one"
        )
    vectors = {name: tensor for name, tensor in tensors.items() if name != "indices"}
    size, indices = network.num_parameters, tensors["indices"]
    if indices.dtype != torch.int64 or indices.dim() != 1 or bool((indices.diff() < 1).any()):
        raise ValueError("the indices of the mask are no increasing row of whole numbers")
    if len(indices) and not 0 <= int(indices[0]) <= int(indices[-1]) < size:
        raise ValueError(f"the mask selects entries outside the {size} parameters")
    if not {"score"} <= vectors.keys() <= set(VECTORS):
        raise ValueError(f"its vectors are {listed(sorted(vectors))}")
    odd = [n for n, v in vectors.items() if v.shape != (size,) or not v.is_floating_point()]
    if odd:
        raise ValueError(f"no vector of {size} numbers: {listed(odd)}")
    mask = torch.zeros(size, dtype=torch.bool)
    mask[indices] = True
    if bool(mask[~outside(network.slices, head)].any()):
        raise ValueError("the mask selects entries of the head")
    return Selection(
        rule=text(about["method"]),
        mask=mask.to(network.device),
        slices=network.slices,
        head=head,
        settings=dict(about["settings"]),
        notes=tuple(text(note) for note in about["notes"]),
        base_hash=about["base_hash"],
        **{name: vector.to(network.device) for name, vector in vectors.items()},
    )


def _sizes(slices: Mapping[str, slice]) -> list[tuple[str, int]]:
    return [(name, where.stop - where.start) for name, where in slices.items()]
