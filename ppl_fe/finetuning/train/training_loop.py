"""The training loop: schedule, early stopping, history, and a stop at what is not finite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, inf, isfinite, isnan, nan

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ppl_fe.arguments import require_integer, require_positive
from ppl_fe.files.kept_run import KeptRun, State
from ppl_fe.finetuning.going_on import between_steps
from ppl_fe.finetuning.objective import Batch, Objective, non_finite_layer
from ppl_fe.finetuning.train.looks import OWN_COLUMNS, Looks
from ppl_fe.finetuning.train.trained_entries import TrainedEntries
from ppl_fe.inference.run.interrupts import Interrupts
from ppl_fe.networks.matching import listed
from ppl_fe.ranks import are_several, is_first, own_part, own_share

WARMUP_FRACTION = 0.06  # as usual in fine-tuning on GLUE (Liu et al. 2019)


@dataclass(frozen=True)
class TrainingPlan:
    """How long to train, how fast, and when to look at the validation data.

    Args:
        num_steps: T, the number of updates.
        learning_rate: η, the largest of the schedule.
        schedule: "linear" or "constant".
        evaluate_every: steps between two looks, at the validation data or for metrics.
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
        """Decide whether to look after so many updates."""
        return step % self.evaluate_every == 0 or step == self.num_steps


@dataclass(frozen=True)
class Outcome:
    """The outcome of a `Training`; the weights themselves are in the module.

    Attributes:
        history: one row a step: the loss of its batch before the update, the learning rate, and
            at looks the validation loss and accuracy and the metrics after the update.
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


class Training:
    """Train entries of a module, from the start or from where a run was stopped.

    The start is evaluated too (step 0), so that the result is never worse on the validation data
    than the start. If the loss or a gradient is not finite, training stops and the module goes
    back to the best state, or without validation data to the last one whose loss was finite.

    Args:
        module: the network to train.
        trained: its trained entries.
        optimizer: the optimiser of `trained.leaves`.
        objective: the mean negative log-likelihood of a minibatch.
        plan: length, learning rates, evaluations.
        looks: what is evaluated from time to time; None for nothing.

    Attributes:
        step: updates so far.
        seen: what the last look reported.
    """

    def __init__(
        self,
        module: nn.Module,
        trained: TrainedEntries,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        plan: TrainingPlan,
        looks: Looks | None,
    ) -> None:
        self.module, self.trained, self.optimizer = module, trained, optimizer
        self.objective, self.plan, self.looks = objective, plan, looks
        self.step, self.best_loss, self.waited, self.failure = 0, inf, 0, ""
        self.rows: list[dict[str, float]] = []
        self.seen: dict[str, float] = {}
        self.good, self.best = Snapshot(trained.values(), 0), Snapshot(trained.values(), 0)
        self.is_over = False

    def run(
        self, batches: Iterator[Batch], kept: KeptRun | None = None, *, progress_bar: bool
    ) -> Outcome:
        """Take the steps that are missing; leave the best state in the module, or the last one.

        Args:
            batches: minibatches, without end; those of the steps before are left out.
            kept: where the run is kept, nowhere by default.
            progress_bar: whether to show one.

        Raises:
            KeyboardInterrupt: Ctrl-C; the message says how much is kept.
        """
        total = self.plan.num_steps
        with (
            tqdm(
                total=total,
                initial=self.step,
                disable=not (progress_bar and is_first()),
                desc="fine-tune",
                unit="step",
                leave=False,
            ) as bar,
            Interrupts() as interrupts,
        ):
            while not self.is_over:
                between_steps(kept, interrupts, self.state, self._so_far, "fine-tuning")
                self.is_over = self._looks_enough() or not self._update(batches)
                bar.set_postfix(self._shown(), refresh=False)
                bar.update(self.step - bar.n)
            bar.refresh()  # the last step, too, however quick it was
        if kept is not None:
            kept.commit(self.state, self._so_far)
        return self._outcome()

    @property
    def columns(self) -> list[str]:
        """Name the columns of the history."""
        return [*OWN_COLUMNS, *(self.looks.metrics if self.looks else ())]

    @property
    def _keeps_best(self) -> bool:
        return self.looks is not None and self.looks.held_out

    def _looks_enough(self) -> bool:
        """Look at the data where it is time to; say whether training is over."""
        step, plan = self.step, self.plan
        if self.looks is not None and plan.evaluates_after(step):
            loss, self.seen = self.looks.look(self.module, self.objective)
            if step == 0:
                self.rows.append({"step": 0, "loss": nan, "learning_rate": nan})
            self.rows[-1] |= self.seen
            if self._keeps_best:
                if not isfinite(loss):
                    where = non_finite_layer(self.module, self.objective, self.looks.batches())
                    self.failure = f"the validation loss is {loss} after step {step}, {where}"
                    return True
                self.waited += 1
                if loss < self.best_loss:
                    self.best_loss, self.waited = loss, 0
                    self.best.keep(self.trained, step)
        return step == plan.num_steps or self.waited == plan.patience

    def _update(self, batches: Iterator[Batch]) -> bool:
        """Take a step; say whether all was finite."""
        batch, trained, number = next(batches), self.trained, self.step + 1
        rate = self.plan.rate(number)
        trained.clear_gradients()
        value = self._differentiate(batch)
        self.rows.append({"step": number, "loss": value, "learning_rate": rate})
        if not isfinite(value):
            where = non_finite_layer(self.module, self.objective, [batch])
            self.failure = f"the loss is {value} at step {number}, {where}"
            return False
        self.good.keep(trained, self.step)
        wrong = trained.non_finite_gradients()
        if wrong:
            self.failure = f"at step {number} the gradient is not finite in {listed(wrong)}"
            return False
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        trained.write()
        self.step = number
        return True

    def _differentiate(self, batch: Batch) -> float:
        """Leave the gradient of a batch's loss in the leaves, and give the loss.

        Several ranks take some rows each; by their number the sums weigh as the whole batch.
        """
        share, value = own_share(len(batch[1])), 0.0
        if share:
            loss, _ = self.objective(self.module, own_part(batch))
            value = loss.item()
            loss.backward()  # type: ignore[no-untyped-call]
        return self.trained.add_over_ranks(value, share) if are_several() else value

    def _outcome(self) -> Outcome:
        failure, end = self.failure, Snapshot([], self.step)
        if not failure and not all(leaf.isfinite().all() for leaf in self.trained.leaves):
            failure = f"weights are not finite after step {self.step}"
        if self._keeps_best or failure:
            end = self.best if self._keeps_best else self.good
            self.trained.restore(end.values)
        return Outcome(pd.DataFrame(self.rows, columns=self.columns), end.step, failure)

    def _shown(self) -> dict[str, str]:
        """Write the last batch's loss, its rate, and the metrics of the last look for the bar."""
        if not self.rows:
            return {}
        row = self.rows[-1]
        shown = {"loss": f"{row['loss']:.4f}", "learning rate": f"{row['learning_rate']:.1e}"}
        metrics = {name: value for name, value in self.seen.items() if name not in OWN_COLUMNS}
        return shown | {name: f"{value:.4g}" for name, value in metrics.items()}

    @property
    def _so_far(self) -> str:
        return f"{self.step} of {self.plan.num_steps} steps"

    def state(self) -> State:
        """Give all that `restore` needs, to go on bit for bit."""
        values: dict[str, list[Tensor]] = {
            "leaf": [*self.trained.leaves],
            "good": self.good.values,
            "best": self.best.values,
        }
        tensors = {f"{name}:{k}": v for name, each in values.items() for k, v in enumerate(each)}
        for k, own in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer:{k}:{name}": v for name, v in own.items() if v is not None}
        rows = [[row.get(name, nan) for name in self.columns] for row in self.rows]
        tensors["rows"] = torch.tensor(rows, dtype=torch.float64).reshape(-1, len(self.columns))
        about = {
            name: getattr(self, name)
            for name in ("step", "best_loss", "waited", "failure", "is_over")
        }
        about |= {"good": self.good.step, "best": self.best.step}
        return tensors, about

    def restore(self, state: State) -> None:
        """Go on from a `state` of the same call."""
        tensors, about = state
        for name in ("step", "best_loss", "waited", "failure", "is_over"):
            setattr(self, name, about[name])
        count = len(self.trained.leaves)
        for name in ("good", "best"):
            held: Snapshot = getattr(self, name)
            held.step = about[name]
            for k, value in enumerate(held.values):
                value.copy_(tensors[f"{name}:{k}"])
        self.trained.restore([tensors[f"leaf:{k}"] for k in range(count)])
        own: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer:"):
                _, number, name = key.split(":", 2)
                own.setdefault(int(number), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": own, "param_groups": groups})
        self.rows = [_row(self.columns, values) for values in tensors["rows"].tolist()]


def _row(columns: Sequence[str], values: list[float]) -> dict[str, float]:
    """Give the row of a step, as the loop has it: what was not looked at is not in it."""
    row = dict(zip(columns, values, strict=True)) | {"step": int(values[0])}
    return {k: v for k, v in row.items() if k in OWN_COLUMNS[:3] or not isnan(v)}
