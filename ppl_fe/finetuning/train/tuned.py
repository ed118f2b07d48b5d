"""What fine-tuning gives back: the weights, how they came about, and the delta to save."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import pandas as pd
import torch
from torch import Tensor

from ppl_fe.finetuning.train.trained_entries import mask_entries
from ppl_fe.networks.delta_format import Delta
from ppl_fe.networks.flat import FlatNetwork
from ppl_fe.networks.hashes import base_tensors


@dataclass(frozen=True, repr=False)
class Tuned:
    """What `finetune` returns; `save_delta` writes what it changed.

    Attributes:
        vector: (D,) the fine-tuned weights; `network(tuned.vector, inputs)` is their output.
        history: one row a step: `step`, `loss` (of its batch, before the update),
            `learning_rate`, and after the update, where looked at, `validation_loss` and
            `validation_accuracy`.
        mask: (D,) bool, the entries outside the head that were trained.
        step: the number of updates in `vector`: with validation data those of the best state.
        base_hash: SHA-256 of the pretrained weights and buffers outside the head.
        head: name -> fine-tuned tensor of the freshly initialised head.
        network: the pretrained network.
    """

    vector: Tensor
    history: pd.DataFrame
    mask: Tensor
    step: int
    base_hash: str
    head: dict[str, Tensor]
    network: FlatNetwork

    @property
    def indices(self) -> Tensor:
        """(K,) positions of the trained entries outside the head, in the vector (D,)."""
        return self.mask.nonzero().squeeze(1)

    @property
    def delta(self) -> Delta:
        """The new values, for `save_delta`: selected entries, and the head whole."""
        network, tensors = self.network, self.network.unflatten(self.vector)
        entries = mask_entries(network, self.mask, list(self.head))
        shapes = {
            name: tuple(tensor.shape)
            for name, tensor in base_tensors(network.module, list(self.head)).items()
        }
        positions, values, start = [], [], 0
        for name, index in entries.items():
            if index is not None:
                positions.append(index.cpu() + start)
                values.append(torch.take(tensors[name], index).cpu())
                start += tensors[name].numel()
        return Delta(
            base_hash=self.base_hash,
            shapes=shapes,
            partly=tuple(name for name, index in entries.items() if index is not None),
            positions=torch.cat(positions) if positions else torch.zeros(0, dtype=torch.long),
            values=torch.cat(values) if values else self.vector.new_zeros(0).cpu(),
            whole={name: tensors[name].cpu() for name, index in entries.items() if index is None},
            head=tuple(self.head),
        )

    def to_dataframe(self) -> pd.DataFrame:
        """The history, one row an update."""
        return self.history.copy()

    def _rows(self) -> list[tuple[str, str]]:
        trained, total = int(self.mask.sum()), len(self.vector)
        rows = [("trained", f"{trained:,} of {total:,} parameters ({trained / total:.3g})")]
        if self.head:
            size = sum(tensor.numel() for tensor in self.head.values())
            rows.append(("fresh head", f"{size:,} parameters in {', '.join(self.head)}"))
        if len(self.history):
            first, last = self.history["loss"].iloc[[0, -1]]
            rows.append(("loss of a batch", f"{first:.4f} at first, {last:.4f} at last"))
        rows.append(("weights of step", f"{self.step} of {len(self.history)}"))
        at = self.history[self.history["step"] == self.step] if len(self.history) else self.history
        for name in ("validation_loss", "validation_accuracy"):
            if name in at and at[name].notna().any():
                rows.append((name.replace("_", " "), f"{at[name].iloc[0]:.4f} there"))
        return rows

    def __repr__(self) -> str:
        width = max(len(name) for name, _ in self._rows())
        return "\n".join(["Tuned", *(f"{name:<{width}}  {value}" for name, value in self._rows())])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>"
            for name, value in self._rows()
        )
        return f"<table><caption>Tuned</caption>{rows}</table>"


class NotFiniteError(FloatingPointError):
    """Fine-tuning met a loss, gradient or weight that is not finite.

    Attributes:
        tuned: the last good state: the best one on the validation data, or without them the last
            whose loss was finite.
    """

    def __init__(self, message: str, tuned: Tuned) -> None:
        super().__init__(message)
        self.tuned = tuned
