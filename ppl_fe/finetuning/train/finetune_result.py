"""The result of fine-tuning: the weights, how they came about, and the delta to save."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ppl_fe.arguments import require_integer
from ppl_fe.data.rows import as_tensor
from ppl_fe.finetuning.train.trained_entries import mask_entries, module_at
from ppl_fe.networks.delta_format import Delta, write_delta
from ppl_fe.networks.flat import FlatNetwork
from ppl_fe.networks.hashes import base_tensors
from ppl_fe.renamed import warn_of_old_name
from ppl_fe.settings_table import settings_table


@dataclass(frozen=True, repr=False)
class FinetuneResult:
    """The weights that `finetune` found; its `repr` shows what was trained and the losses.

    Attributes:
        weights: (D,) all the network's weights, fine-tuned.
        history: one row a step: `step`, `loss` (of its batch, before the update),
            `learning_rate`, and after the update, where looked at, `validation_loss`,
            `validation_accuracy` and the metrics by their names.
        mask: (D,) bool, the entries outside the head that were trained.
        step: the number of updates in `weights`: with validation data those of the best state.
        base_hash: SHA-256 of the pretrained weights and buffers outside the head.
        head: name -> fine-tuned tensor of the freshly initialised head.
        network: the pretrained network.
        adapters: of method "lora", layer -> (A, B), of shapes (r, in) and (out, r); `weights` has
            2 B A added already.
        metrics: name -> value of these weights, on the validation data or else on the training
            data; empty where none was asked for.

    Example:
        >>> from ppl_fe.finetuning import finetune
        >>> network = FlatNetwork(nn.Linear(2, 1))
        >>> tuned = finetune(
        ...     network, (torch.ones(4, 2), torch.zeros(4, 1)), likelihood="normal", method="full",
        ...     num_steps=3, progress_bar=False)
        >>> bool((tuned.module().weight.flatten() == tuned.weights[:2]).all())
        True
        >>> tuned.predict(torch.ones(4, 2)).shape
        torch.Size([4, 1])
    """

    weights: Tensor
    history: pd.DataFrame
    mask: Tensor
    step: int
    base_hash: str
    head: dict[str, Tensor]
    network: FlatNetwork
    adapters: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def vector(self) -> Tensor:
        """`weights` by its old name, which goes with the next release."""
        warn_of_old_name("FinetuneResult.vector", "FinetuneResult.weights")
        return self.weights

    def module(self) -> nn.Module:
        """Copy the pretrained module, in evaluation mode, and give the copy these weights.

        It is an ordinary module, which can be trained on, saved, or moved; of transformers also by
        its ``save_pretrained``.
        """
        module = module_at(self.network, self.weights)
        for parameter in module.parameters():  # the network's copy is for reading only
            parameter.requires_grad_(parameter.is_floating_point())
        return module

    def predict(self, inputs: Any, *, batch_size: int = 256) -> Any:
        """Evaluate the fine-tuned network, in evaluation mode and without gradients.

        Args:
            inputs: a tensor or NumPy array (N, ...), or for networks called by keyword a mapping of
                them.
            batch_size: rows that go through the network at once, 256 by default.

        Returns:
            The network's output for all N rows, on its device; of an output with `logits` (Hugging
            Face), the logits.

        Raises:
            TypeError: inputs that are no tensors.
            ValueError: inputs of different lengths, or a batch size below one.
        """
        require_integer("batch_size", batch_size, 1)
        named = inputs if isinstance(inputs, Mapping) else {"inputs": inputs}
        tensors = {str(name): as_tensor(value, f"{name!r}") for name, value in named.items()}
        lengths = {name: len(tensor) if tensor.ndim else 0 for name, tensor in tensors.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"inputs must be rows of equal number, got {lengths}")
        outputs = []
        with torch.no_grad():
            for start in range(0, max(1, *lengths.values()), batch_size):
                rows = {
                    name: tensor[start : start + batch_size].to(self.network.device)
                    for name, tensor in tensors.items()
                }
                given = rows if isinstance(inputs, Mapping) else rows["inputs"]
                outputs.append(self.network(self.weights, given))
        return outputs[0] if len(outputs) == 1 else pytree.tree_map(_joined, *outputs)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what fine-tuning changed as one file for `fe.apply_delta`, as `fe.save_delta` does.

        Args:
            path: the file, replaced if it exists.
        """
        write_delta(self.delta, path)

    @property
    def indices(self) -> Tensor:
        """Give the positions (K,) of the trained entries outside the head, in the vector (D,)."""
        return self.mask.nonzero().squeeze(1)

    @property
    def delta(self) -> Delta:
        """Gather the new values, for `save_delta`: selected entries, and the head whole."""
        network, tensors = self.network, self.network.unflatten(self.weights)
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
            values=torch.cat(values) if values else self.weights.new_zeros(0).cpu(),
            whole={name: tensors[name].cpu() for name, index in entries.items() if index is None},
            head=tuple(self.head),
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Give the history, one row an update."""
        return self.history.copy()

    def _rows(self) -> list[tuple[str, str]]:
        trained, total = int(self.mask.sum()), len(self.weights)
        rows = [("trained", f"{trained:,} of {total:,} parameters ({trained / total:.3g})")]
        if self.head:
            size = sum(tensor.numel() for tensor in self.head.values())
            rows.append(("fresh head", f"{size:,} parameters in {', '.join(self.head)}"))
        losses = self.history["loss"].dropna()
        if len(losses):
            rows.append(
                ("loss of a batch", f"{losses.iloc[0]:.4f} at first, {losses.iloc[-1]:.4f} at last")
            )
        steps = int(self.history["step"].max()) if len(self.history) else 0
        rows.append(("weights of step", f"{self.step} of {max(steps, self.step)}"))
        at = self.history[self.history["step"] == self.step] if len(self.history) else self.history
        for name in ("validation_loss", "validation_accuracy"):
            if name in at and at[name].notna().any():
                rows.append((name.replace("_", " "), f"{at[name].iloc[0]:.4f} there"))
        data = "validation" if len(at) and at["validation_loss"].notna().any() else "training"
        rows += [(n, f"{v:.4g} there, on the {data} data") for n, v in self.metrics.items()]
        return rows

    def __repr__(self) -> str:
        width = max(len(name) for name, _ in self._rows())
        return "\n".join(
            ["FinetuneResult", *(f"{name:<{width}}  {value}" for name, value in self._rows())]
        )

    def _repr_html_(self) -> str:
        return settings_table("FinetuneResult", self._rows())


def _joined(*parts: Any) -> Any:
    """Join the rows of a part of the output; what is no tensor is that of the first batch."""
    return torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0]
