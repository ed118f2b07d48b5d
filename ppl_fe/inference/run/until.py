"""When a run is an answer: R-hat and ESS of every named scalar, against its targets."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

import numpy as np
from arviz_stats.base import array_stats
from numpy.typing import NDArray

from ppl_fe.inference.targets import Targets
from ppl_fe.ranks import told_by_first

MOST_DOUBLINGS, OF_A_LOSS = 3, 2  # for the sake of a standard deviation, or λ̂, not known yet
# How much longer than until its next look a run is expected to go on after one that was not enough,
# if each look ends half of the runs: the next leg, half of one twice as long, and so on.
LEGS_TO_COME = MOST_DOUBLINGS
MOST_NAMED = 500  # values of a site that are judged one by one
AXES: dict[str, Any] = {"chain_axis": 0, "draw_axis": 1}
TAILS = (0.05, 0.95)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Worst:
    """The worst of all named scalars, each number with the scalar that has it.

    Attributes:
        r_hat: largest rank-normalised split R-hat.
        ess: smallest of bulk and tail ESS.
        error: largest standard error of a standard deviation, as a share of it; of an estimate
            that of λ̂.
    """

    r_hat: tuple[float, str]
    ess: tuple[float, str]
    error: tuple[float, str]

    def reaches(self, targets: Targets) -> bool:
        """Say whether both targets are met."""
        return self.ess[0] >= targets.ess and self.r_hat[0] <= targets.r_hat


def named_scalars(draws: Mapping[str, Mapping[str, NDArray[Any]]]) -> dict[str, Array]:
    """Name every scalar (C, S) that is judged: the small sites' values, and the loss or −log p.

    Entries that no draw changes (the zeros of a Cholesky factor) are left out; those that are not
    finite stay, and are the worst.

    Args:
        draws: "posterior" and "sample_stats", each name -> (C, S, *shape).
    """
    found = dict[str, Array]()
    for name, values in draws["posterior"].items():
        flat = values.reshape(*values.shape[:2], -1)
        if flat.shape[2] > MOST_NAMED:
            continue
        for k in range(flat.shape[2]):
            shape = np.unravel_index(k, values.shape[2:])
            found[name + (str([int(i) for i in shape]) if shape else "")] = flat[..., k]
    stats = draws["sample_stats"]
    level = "loss" if np.ptp(stats["loss"]) else "lp"
    found[level] = stats[level]
    named = {k: np.asarray(v, dtype=np.float64) for k, v in found.items()}
    return {k: v for k, v in named.items() if (v != v[0, 0]).any() or not np.isfinite(v[0, 0])}


def worst_of(scalars: Mapping[str, Array]) -> Worst:
    """Find the worst R-hat, ESS and error of a standard deviation; what is not known is worst."""
    with np.errstate(over="ignore", invalid="ignore"):  # of a scalar that is not finite
        errors = {
            name: float(array_stats.mcse(x, **AXES, method="sd")) / float(x.std())
            for name, x in scalars.items()
            if name not in ("loss", "lp")
        }
        return _worst(scalars, errors)


def worst_loss(losses: Array, offsets: Sequence[float]) -> Worst:
    """Find the worst of the losses (C, S) of equal groups of chains, and the error of their λ̂.

    Args:
        losses: mean −log-likelihood of a datum.
        offsets: L_n(w*) of each group; λ̂ is proportional to the mean's distance from it.
    """
    scalars, errors = dict[str, Array](), dict[str, float]()
    for group, (own, offset) in enumerate(
        zip(np.split(losses, len(offsets)), offsets, strict=True)
    ):
        name = "loss" if len(offsets) == 1 else f"loss of target {group}"
        kept = own[np.isfinite(own).all(1)]
        if len(kept):
            scalars[name] = kept
            error = float(array_stats.mcse(kept, **AXES, method="mean"))
            errors[name] = error / abs(float(kept.mean()) - offset)
    return _worst(scalars, errors)


def _worst(scalars: Mapping[str, Array], errors: Mapping[str, float]) -> Worst:
    def largest(values: Mapping[str, float]) -> tuple[float, str]:
        known = {k: v if np.isfinite(v) else np.inf for k, v in values.items()}
        label = max(known, key=lambda name: known[name], default="nothing moves")
        return known.get(label, np.inf), label

    def ess(x: Array, method: str, **more: Any) -> float:
        return float(array_stats.ess(x, **AXES, method=method, **more))

    r_hat = {
        k: float(array_stats.rhat(_at_least_two(x), **AXES, method="rank"))
        for k, x in scalars.items()
    }
    inverse = {
        k: 1 / max(min(ess(x, "bulk"), ess(x, "tail", prob=TAILS)), 1e-9)
        for k, x in scalars.items()
    }
    least, label = largest(inverse)
    return Worst(largest(r_hat), (1 / least, label), largest(errors))


def _at_least_two(x: Array) -> Array:
    """Hold a single chain against itself, half by half."""
    half = x.shape[1] // 2
    return x if len(x) > 1 else np.stack([x[0, :half], x[0, -half:]])


class Until:
    """Decide, whenever all draws that are kept are there, whether to go on.

    Args:
        targets: of the run.

    Attributes:
        worst: as of the last look; None before.
        gave_up: why the run ended short of its targets; "" otherwise.
        looks: so far.
    """

    def __init__(self, targets: Targets) -> None:
        self.targets, self.gave_up = targets, ""
        self.worst: Worst | None = None
        self._begun, self.looks = time.perf_counter(), 0

    def out_of_time(self, num_steps: int) -> bool:
        """Say whether the budget of steps (so far, a chain) or seconds is spent."""
        targets = self.targets
        if num_steps >= targets.max_steps:
            self.gave_up = f"max_steps={targets.max_steps} were taken"
        elif targets.max_seconds and told_by_first(partial(self._is_late, 1.0)):
            self.gave_up = f"max_seconds={targets.max_seconds:g} were over"
        return bool(self.gave_up)

    def half_spent(self, num_steps: int) -> bool:
        """Say whether half of the steps (so far, a chain) or seconds are spent, by a warm-up."""
        timed = bool(self.targets.max_seconds)
        late = timed and told_by_first(partial(self._is_late, 0.5))
        return late or 2 * num_steps >= self.targets.max_steps

    def _is_late(self, share: float) -> bool:
        """Say whether this share of the seconds is over, by the clock of one process."""
        return time.perf_counter() - self._begun > share * (self.targets.max_seconds or inf)

    def look(self, draws: Mapping[str, Mapping[str, NDArray[Any]]]) -> Worst:
        """Find the worst of what these targets are about."""
        offsets = self.targets.loss_offsets
        if offsets is None:
            return worst_of(named_scalars(draws))
        losses = np.asarray(draws["sample_stats"]["loss"], dtype=np.float64)
        return worst_loss(losses, offsets)

    def settle(self, draws: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
        """Look a last time when the budget is spent: what there is may be enough."""
        self.worst = self.look(draws)
        if self.worst.reaches(self.targets):
            self.gave_up = ""

    def is_done(self, draws: Mapping[str, Mapping[str, NDArray[Any]]], num_steps: int) -> bool:
        """Look at the draws; num_steps are those taken for them, a chain."""
        self.worst = worst = self.look(draws)
        self.looks += 1
        if worst.reaches(self.targets):
            most = MOST_DOUBLINGS if self.targets.loss_offsets is None else OF_A_LOSS
            patient = self.looks <= most
            return not (
                patient and np.isfinite(worst.error[0]) and worst.error[0] > self.targets.error
            )
        # An ESS grows in proportion to the steps, R-hat − 1 as their inverse.
        growth = self.targets.max_steps / max(1, num_steps)
        needed = max(
            self.targets.ess / max(worst.ess[0], 1e-9),
            (worst.r_hat[0] - 1) / (self.targets.r_hat - 1),
        )
        if needed > 2 * growth:
            self.gave_up = (
                f"at this rate about {needed * num_steps:.2g} steps would be needed, and "
                f"max_steps={self.targets.max_steps} are allowed"
            )
        return bool(self.gave_up)
