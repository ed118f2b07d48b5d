"""Looks at how training goes: the loss on validation data, and metrics of the outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite, nan
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from ppl_fe.data.sources import LoaderData, TensorData
from ppl_fe.finetuning.objective import Batch, Objective, one_pass

# Of the outputs (N, ...) and the targets (N, ...) of all the data, on the CPU, to one number.
Metric = Callable[[Tensor, Tensor], Any]
OWN_COLUMNS = ("step", "loss", "learning_rate", "validation_loss", "validation_accuracy")


@dataclass(frozen=True)
class Looks:
    """What is evaluated at a look.

    Args:
        batches: makes a pass over the data that are looked at.
        held_out: whether these are validation data, whose loss and accuracy are then reported.
        metrics: name -> function of (outputs, targets), which gives one number.

    Raises:
        TypeError: a name that is no text, or a metric that cannot be called.
        ValueError: a name that a history has anyway.
    """

    batches: Callable[[], Iterator[Batch]]
    held_out: bool
    metrics: Mapping[str, Metric] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, metric in self.metrics.items():
            if not isinstance(name, str) or not callable(metric):
                raise TypeError(
                    "metrics must be name -> function of (outputs, targets), got "
                    f"{name!r}: {type(metric).__name__}"
                )
            if name in OWN_COLUMNS:
                raise ValueError(f"metrics: the history has a column {name!r} of its own; rename")

    def look(self, module: nn.Module, objective: Objective) -> tuple[float, dict[str, float]]:
        """Evaluate the module as it is.

        Returns:
            The mean loss of these data, and what is to be reported. The metrics are NaN where the
            loss is not finite.

        Raises:
            ValueError: a metric failed, or gave no number.

        Example:
            >>> rows = (torch.ones(4, 2), torch.tensor([0, 1, 1, 1]))
            >>> module = nn.Linear(2, 2)
            >>> _ = nn.init.zeros_(module.weight), nn.init.zeros_(module.bias)
            >>> looks = Looks(lambda: iter([rows]), False, {"ones": lambda out, y: y.sum()})
            >>> looks.look(module, Objective("categorical", torch.device("cpu")))[1]
            {'ones': 3.0}
        """
        kept: list[tuple[Tensor, Tensor]] | None = [] if self.metrics else None
        loss, accuracy = objective.evaluate(module, self.batches(), kept)
        seen = {"validation_loss": loss, "validation_accuracy": accuracy} if self.held_out else {}
        if kept and isfinite(loss):
            outputs, targets = _whole(kept)
            return loss, seen | {
                name: _number(name, metric, outputs, targets)
                for name, metric in self.metrics.items()
            }
        return loss, seen | dict.fromkeys(self.metrics, nan)


def looks_of(
    source: TensorData | LoaderData,
    held_out: TensorData | LoaderData | None,
    metrics: Mapping[str, Metric] | None,
    batch_size: int,
) -> Looks | None:
    """Look at the validation data where there are some, else at the data for metrics alone.

    Returns:
        None where there is nothing to look for.
    """
    if held_out is None and not metrics:
        return None
    seen = source if held_out is None else held_out
    return Looks(lambda: one_pass(seen, batch_size), held_out is not None, dict(metrics or {}))


def at_step(history: pd.DataFrame, step: int, names: Iterable[str]) -> dict[str, float]:
    """Give what a history says, in these columns, of the weights after so many steps.

    Example:
        >>> at_step(pd.DataFrame({"step": [0, 5], "f1": [0.5, 0.75]}), 5, ["f1"])
        {'f1': 0.75}
    """
    rows = history[history["step"] == step]
    return {name: float(rows[name].iloc[0]) if len(rows) else nan for name in names}


def _whole(kept: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    outputs, targets = zip(*kept, strict=True)
    try:
        return torch.cat(outputs), torch.cat(targets)
    except RuntimeError as error:
        raise ValueError(
            "metrics need outputs of equal shape, to be put together: those of the first batches "
            f"are {tuple(outputs[0].shape)} and {tuple(outputs[1].shape)}; pad the data alike"
        ) from error


def _number(name: str, metric: Metric, outputs: Tensor, targets: Tensor) -> float:
    """Compute a metric, and name it where it fails."""
    try:
        found = metric(outputs, targets)
    except Exception as error:
        raise ValueError(
            f"metrics[{name!r}] failed on outputs of shape {tuple(outputs.shape)} and targets of "
            f"shape {tuple(targets.shape)}: {type(error).__name__}: {error}"
        ) from error
    try:
        return float(found)
    except (TypeError, ValueError, RuntimeError) as error:
        shape = f" of shape {tuple(found.shape)}" if hasattr(found, "shape") else ""
        raise ValueError(
            f"metrics[{name!r}] gave a {type(found).__name__}{shape}, where one number is wanted"
        ) from error
