"""The training loop: schedule, early stopping, history, and a stop at what is not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil, inf, isfinite, nan

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ppl_fe.arguments import require_integer, require_positive
from ppl_fe.finetuning.objective import Batch, Objective, non_finite_layer
from ppl_fe.finetuning.train.trained_entries import TrainedEntries
from ppl_fe.networks.matching import listed

COLUMNS = ("step", "loss", "learning_rate", "validation_loss", "validation_accuracy")
WARMUP_FRACTION = 0.06  # as usual in fine-tuning on GLUE (Liu et al. 2019)


@dataclass(frozen=True)
class TrainingPlan:
    """How long to train, how fast, and when to look at the validation data.

    Args:
        num_steps: T, the number of updates.
        learning_rate: η, the largest of the schedule.
        schedule: "linear" or "constant".
        evaluate_every: steps between two evaluations on the validation data.
        patience: evaluations without a better validation loss before training stops.

    Raises:
        ValueError: a number out of range, another schedule.
    """

    num_steps: int
    learning_rate: float
    schedule: str
    evaluate_every: int
    patience: int

    def __post_init__(self) -> None:
        require_positive("learning_rate", self.learning_rate)
        for name in ("num_steps", "evaluate_every", "patience"):
            require_integer(name, getattr(self, name), 1)
        if self.schedule not in ("linear", "constant"):
            raise ValueError(f"schedule must be 'linear' or 'constant', got {self.schedule!r}")

    def rate(self, step: int) -> float:
        """Compute η_t for t = 1, ..., T.

        "linear" rises to η over the first 6 % of the steps and falls towards zero after them;
        it is never zero. "constant" is η.

        Example:
            >>> plan = TrainingPlan(100, 1.0, "linear", 10, 3)
            >>> [round(plan.rate(step), 3) for step in (1, 6, 7, 53, 100)]
            [0.167, 1.0, 1.0, 0.511, 0.011]
        """
        if self.schedule == "constant":
            return self.learning_rate
        rising = ceil(WARMUP_FRACTION * self.num_steps) if self.num_steps > 1 else 0
        if step <= rising:
            return self.learning_rate * step / rising
        return self.learning_rate * (self.num_steps + 1 - step) / (self.num_steps - rising)

    def evaluates_after(self, step: int) -> bool:
        """Decide whether to evaluate on the validation data after so many updates."""
        return step % self.evaluate_every == 0 or step == self.num_steps


@dataclass(frozen=True)
class Outcome:
    """The outcome of `train`; the weights themselves are in the module.

    Attributes:
        history: one row a step: the loss of its batch before the update, the learning rate, and
            at evaluations the validation loss and accuracy after the update.
        step: the number of updates in the weights that the module holds.
        failure: what became non-finite and where; empty if nothing did.
    """

    history: pd.DataFrame
    step: int
    failure: str


@dataclass
class Snapshot:
    """A copy of the trained values, and the number of updates in them."""

    values: list[Tensor]
    step: int

    def keep(self, trained: TrainedEntries, step: int) -> None:
        """Overwrite the copy with the present values."""
        for value, leaf in zip(self.values, trained.leaves, strict=True):
            value.copy_(leaf.detach())
        self.step = step


def train(
    module: nn.Module,
    trained: TrainedEntries,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    batches: Iterator[Batch],
    plan: TrainingPlan,
    validation: Callable[[], Iterator[Batch]] | None,
    *,
    progress_bar: bool,
) -> Outcome:
    """Train the entries; leave the best state in the module, or the last one without validation.

    The start is evaluated too (step 0), so that the result is never worse on the validation data
    than the start. If the loss or a gradient is not finite, training stops and the module goes
    back to the best state, or without validation data to the last one whose loss was finite.

    Args:
        module: the network to train.
        trained: its trained entries.
        optimizer: the optimiser of `trained.leaves`.
        objective: the mean negative log-likelihood of a minibatch.
        batches: minibatches, without end.
        plan: length, learning rates, evaluations.
        validation: makes a pass over the validation data; None without them.
        progress_bar: whether to show one.
    """
    rows: list[dict[str, float]] = []
    good, best = Snapshot(trained.values(), 0), Snapshot(trained.values(), 0)
    best_loss, waited, failure, step = inf, 0, "", 0
    with tqdm(
        total=plan.num_steps, disable=not progress_bar, desc="fine-tune", unit="step", leave=False
    ) as bar:
        while True:
            if validation is not None and plan.evaluates_after(step):
                loss, accuracy = objective.evaluate(module, validation())
                if step == 0:
                    rows.append({"step": 0, "loss": nan, "learning_rate": nan})
                rows[-1] |= {"validation_loss": loss, "validation_accuracy": accuracy}
                if not isfinite(loss):
                    where = non_finite_layer(module, objective, validation())
                    failure = f"the validation loss is {loss} after step {step}, {where}"
                    break
                waited += 1
                if loss < best_loss:
                    best_loss, waited = loss, 0
                    best.keep(trained, step)
            if step == plan.num_steps or waited == plan.patience:
                break
            batch, rate = next(batches), plan.rate(step + 1)
            trained.clear_gradients()
            batch_loss, _ = objective(module, batch)
            value = batch_loss.item()
            rows.append({"step": step + 1, "loss": value, "learning_rate": rate})
            if not isfinite(value):
                where = non_finite_layer(module, objective, [batch])
                failure = f"the loss is {value} at step {step + 1}, {where}"
                break
            good.keep(trained, step)
            batch_loss.backward()  # type: ignore[no-untyped-call]
            wrong = trained.non_finite_gradients()
            if wrong:
                failure = f"at step {step + 1} the gradient is not finite in {listed(wrong)}"
                break
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            trained.write()
            step += 1
            bar.set_postfix(_shown(rows[-1]), refresh=False)
            bar.update()
        bar.refresh()  # the last step, too, however quick it was
    if not failure and not all(leaf.isfinite().all() for leaf in trained.leaves):
        failure = f"weights are not finite after step {step}"
    end = Snapshot([], step)
    if validation is not None or failure:
        end = best if validation is not None else good
        trained.restore(end.values)
    return Outcome(pd.DataFrame(rows, columns=list(COLUMNS)), end.step, failure)


def _shown(row: dict[str, float]) -> dict[str, str]:
    return {"loss": f"{row['loss']:.4f}", "learning rate": f"{row['learning_rate']:.1e}"}
