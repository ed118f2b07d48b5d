"""Training the selected entries alone under Hugging Face's Trainer.

Trainer builds its own optimiser of whole tensors, so the packed leaves of `TrainedEntries` are out
of reach. Instead, from before the optimiser exists:

- A tensor without a trained entry requires no gradient. Trainer leaves it out of the optimiser,
  which keeps no state for it.
- In a tensor trained in part, gradients of frozen entries are set to zero as they arrive. That
  alone would not hold them: weight decay moves entries without a gradient, too, and so does the
  momentum of some optimisers. It keeps frozen entries out of what is computed from whole
  gradients, above all the norm that Trainer clips.
- After every step frozen entries get their pretrained values back, bit for bit, whatever the
  optimiser did to them.

Memory: beside the model, a copy of the tensors that are trained at all, and Trainer's own gradients
and state of those tensors, two more copies each for AdamW. `fe.finetune` needs a few numbers for
each trained entry instead; take it where memory counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ppl_fe.arguments import named_arguments
from ppl_fe.files.digest import digest
from ppl_fe.finetuning.selection import Selection, SelectionError
from ppl_fe.finetuning.train.finetune_result import FinetuneResult
from ppl_fe.finetuning.train.looks import OWN_COLUMNS, at_step
from ppl_fe.networks.flat import FlatNetwork
from ppl_fe.networks.hashes import base_tensors, network_hash
from ppl_fe.networks.matching import listed

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError(
        "fe.MaskedTraining needs transformers: pip install 'ppl-fe[huggingface]'"
    ) from error


class MaskedTraining(TrainerCallback):
    """Train a selection and its head, and nothing else, as a `transformers.TrainerCallback`.

        masked = fe.MaskedTraining(selection)
        trainer = transformers.Trainer(model, args, train_dataset=data, callbacks=[masked])
        trainer.train()
        fe.save_delta(masked.tuned(network), "task.safetensors")

    The loss, optimiser, weight decay, schedule and precision are Trainer's. Trainer also trains
    with dropout, which `fe.select_parameters` and `fe.finetune` leave off: set the model's dropout
    probabilities to zero to train the function that the selection was made on. The model stays
    frozen outside the selection when training is over.

    Args:
        selection: what to train, found by `select_parameters` on the same pretrained weights. Its
            head may have been initialised otherwise than the model's.

    Raises:
        SelectionError: when Trainer is made: a model with other names, shapes or weights.
        ValueError: when Trainer is made: a model whose running statistics training would change,
            sharded training.

    Example:
        >>> network = FlatNetwork(nn.Linear(2, 1))
        >>> MaskedTraining(Selection("random", torch.rand(3), torch.rand(3) > 2, network.slices))
        MaskedTraining(Selection(rule='random', 0 of 3 parameters, 0 %))
    """

    @named_arguments
    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self._model: nn.Module | None = None
        self._parts: dict[str, Tensor] = {}  # trained in part: name -> positions of those entries
        self._base: dict[str, Tensor] = {}  # trained at all, outside the head: pretrained values
        self._history: pd.DataFrame | None = None
        self._step = 0

    def on_init_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Freeze the model, before Trainer makes its optimiser."""
        self._freeze(given["model"], args)

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Freeze a model made since; refuse one whose frozen entries have changed."""
        if given["model"] is not self._model:
            self._freeze(given["model"], args)
        self._check("before training; was it resumed from a run of another base?")

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Put the pretrained values back into frozen entries."""
        assert self._model is not None
        named = dict(self._model.named_parameters())
        with torch.no_grad():
            for name, index in self._parts.items():
                index, base = (t.to(named[name].device) for t in (index, self._base[name]))
                trained = torch.take(named[name], index)
                named[name].copy_(base).put_(index, trained)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Keep the history; the weights are in the model."""
        self._step = state.global_step
        if args.load_best_model_at_end:
            self._step = getattr(state, "best_global_step", None) or self._step
        self._history = _history(state.log_history)

    def tuned(self, network: FlatNetwork) -> FinetuneResult:
        """Collect what Trainer made of the model, for `save_delta`.

        Args:
            network: the pretrained network that the selection was made on.

        Returns:
            The result in the form that `finetune` gives it.

        Raises:
            RuntimeError: no training has ended yet.
            SelectionError: another network; frozen weights or buffers that changed.
        """
        if self._model is None or self._history is None:
            raise RuntimeError("no training has ended yet: call trainer.train() first")
        hashed = network_hash(network, self.selection.head)
        if network.slices != self.selection.slices or hashed != self._untrained_hash():
            self._check("after training")
            raise SelectionError(
                "network is not the pretrained one that the selection was made on; make it before "
                "training, or of the checkpoint again"
            )
        named = dict(self._model.named_parameters())
        vector = network.flatten({name: named[name].detach() for name in network.names})
        parts = network.unflatten(vector)
        return FinetuneResult(
            weights=vector,
            history=self._history,
            mask=self.selection.mask.to(network.device),
            step=self._step,
            base_hash=hashed,
            head={name: parts[name] for name in self.selection.head},
            network=network,
            metrics=at_step(self._history, self._step, self._history.columns[len(OWN_COLUMNS) :]),
        )

    def __repr__(self) -> str:
        return f"MaskedTraining({self.selection!r})"

    def _freeze(self, model: nn.Module, args: Any) -> None:
        """Leave gradients to trained tensors only, and to trained entries of these."""
        selection = self.selection
        if getattr(args, "deepspeed", None) or getattr(args, "fsdp", None):
            raise ValueError("MaskedTraining needs whole tensors: train without DeepSpeed and FSDP")
        running = [
            name
            for name, layer in model.named_modules()
            if isinstance(layer, _NormBase) and layer.track_running_stats
        ]
        if running:
            raise ValueError(
                f"Trainer would change the running statistics of {listed(running)}, which a delta "
                "does not hold: use fe.finetune, which leaves them as they are"
            )
        named = dict(model.named_parameters())
        sizes = {name: where.stop - where.start for name, where in selection.slices.items()}
        wrong = [name for name, n in sizes.items() if name not in named or named[name].numel() != n]
        if wrong:
            raise SelectionError(
                f"the selection belongs to another model than Trainer's {type(model).__name__}, "
                f"which lacks, or has in another size: {listed(wrong)}"
            )
        self._model, self._parts, self._base = model, {}, {}
        model.requires_grad_(False)
        for name, where in selection.slices.items():
            chosen, tensor = selection.mask[where], named[name]
            tensor.requires_grad_(bool(name in selection.head or chosen.any()))
            if name in selection.head or not chosen.any():
                continue
            self._base[name] = tensor.detach().clone()
            if not chosen.all():
                self._parts[name] = index = chosen.nonzero().squeeze(1)
                tensor.register_hook(partial(_only, index))  # type: ignore[no-untyped-call]
        self._check("when Trainer was made")

    def _untrained_hash(self) -> str:
        """Hash the model with its pretrained values put back at trained entries."""
        assert self._model is not None
        tensors = base_tensors(self._model, self.selection.head)
        for name, base in self._base.items():
            now, index = tensors[name].detach(), self._parts.get(name)
            if index is None:
                tensors[name] = base
            else:
                index = index.to(now.device)
                tensors[name] = now.clone().put_(index, torch.take(base.to(now.device), index))
        return digest(tensors)

    def _check(self, when: str) -> None:
        if self.selection.base_hash and self._untrained_hash() != self.selection.base_hash:
            raise SelectionError(
                "outside the selected entries and the head, the model's weights or buffers are not "
                f"those the selection was made on (or in another dtype), {when}"
            )


def _only(index: Tensor, gradient: Tensor) -> Tensor:
    """Set a gradient to zero outside the positions given."""
    index = index.to(gradient.device)
    # A product with a mask would not do: zero times infinity is NaN.
    return torch.zeros_like(gradient).put_(index, torch.take(gradient, index))


def _history(log: list[Mapping[str, Any]]) -> pd.DataFrame:
    """Bring Trainer's log into the columns of `FinetuneResult.history`: a row a logged step."""
    rows: dict[int, dict[str, Any]] = {}
    for entry in log:
        row = rows.setdefault(entry["step"], {"step": entry["step"]})
        row |= {name: entry[name] for name in ("loss", "learning_rate") if name in entry}
        for name in ("loss", "accuracy"):
            if f"eval_{name}" in entry:
                row[f"validation_{name}"] = entry[f"eval_{name}"]
        row |= {name: entry[f"eval_{name}"] for name in _metrics(entry)}
    names = dict.fromkeys(name for entry in log for name in _metrics(entry))
    return pd.DataFrame([rows[step] for step in sorted(rows)], columns=[*OWN_COLUMNS, *names])


# What Trainer reports of an evaluation beside the numbers of `compute_metrics`.
TIMES = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


def _metrics(entry: Mapping[str, Any]) -> list[str]:
    """Name the metrics of `compute_metrics` in an entry of Trainer's log."""
    names = [name.removeprefix("eval_") for name in entry if name.startswith("eval_")]
    return [name for name in names if name not in ("loss", *TIMES)]
