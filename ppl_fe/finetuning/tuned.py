"""What fine-tuning gives back: the weights, how they came about, and the delta to save."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import Tensor

from ppl_fe.networks.delta_format import Delta, base_tensors
from ppl_fe.networks.flat import FlatNetwork
from ppl_fe.networks.sparse import mask_entries


@dataclass(frozen=True)
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
    network: FlatNetwork = field(repr=False)

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


class NotFiniteError(FloatingPointError):
    """Fine-tuning met a loss, gradient or weight that is not finite.

    Attributes:
        tuned: the last good state: the best one on the validation data, or without them the last
            whose loss was finite.
    """

    def __init__(self, message: str, tuned: Tuned) -> None:
        super().__init__(message)
        self.tuned = tuned
