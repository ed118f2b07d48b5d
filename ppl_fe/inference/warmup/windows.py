"""Warm trajectories up: step size and metric in windows, until they and the chains have settled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import exp, log
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_fe.inference.record.split_statistics import split_r_hat
from ppl_fe.inference.step.metric_factor import MOST_DENSE
from ppl_fe.inference.step.trajectories import Trajectories
from ppl_fe.inference.warmup.other_modes import OtherModes

# Trajectories; each window's metric is that of the next. Three at least, the last for the step.
WINDOWS = (25, 25, 40, 60, 100, 150, 200, 300)
LEAST_WINDOWS, LAST_WINDOW = 3, 30
# Of a loss alone, whose posterior may be singular: its stiff corners are met now and then only.
LEAST_WINDOWS_OF_LOSS, LAST_WINDOW_OF_LOSS = 4, 50
SETTLED_RATIO, SETTLED_R_HAT = 1.4, 1.1
LEAST_SEEN = 4  # draws that a metric or an R-hat comes from
LONGEST_STEP = 1.8  # of whitened coordinates; 2 is where a normal's step becomes unstable
LEARNING_EXPONENT = 0.6  # of the gain 1/(k + 1)^0.6 (Robbins & Monro 1951)
MOST_VALUES = 2**26  # of all positions that are held, and of their gradients
MOST_ROWS = 256  # of draws that a low-rank metric of a local posterior is learnt from


class Seen(NamedTuple):
    """What chains went through: positions and gradients (C, D), and log-likelihoods (C,)."""

    positions: list[Tensor]
    gradients: list[Tensor]
    losses: list[Tensor]


class Windows:
    """Learn the step size and the metric of trajectories, then hold them fixed.

    In every window h follows log h ← log h + (mean acceptance − target)/(k + 1)^0.6 over all
    chains of a group, after each trajectory of scale 1, and at its end the metric is learnt from
    its accepted positions and their gradients. Windows follow one another until the metric changes
    by less than 40 % in any direction and the chains' split R-hat is below 1.1, or as long as they
    are given. Where the loss alone matters it is the step size that changes by less than 40 % from
    one window to the next.

    Args:
        chains: to be warmed up.
        target_acceptance: the mean acceptance that the step is to have.
        step_size: ε = h², by default chosen.
        learns_metric: or leaves it as it is.
        of_loss: whether the loss alone matters; by default every coordinate does.
        num_trajectories: the length of the warm-up; by default until it has settled.
        start: puts the chains where the warm-up begins, and gives them a first metric; by default
            they begin as they are. It returns the modes that it found, if it looked for any. It
            is called in `run`, which a resumed run may not need, and may take long.

    Attributes:
        num_steps: trajectories so far, in warm-up and after it.
        modes: that were found at the start, to be held against the draws.
    """

    exploring = False

    def __init__(
        self,
        chains: Trajectories,
        *,
        target_acceptance: float,
        step_size: float | None,
        learns_metric: bool,
        of_loss: bool = False,
        num_trajectories: int | None,
        start: Callable[[], OtherModes | None] | None = None,
    ) -> None:
        self.chains, self.num_steps, self._start = chains, 0, start
        self.modes: OtherModes | None = None
        self._target, self._learns_metric = target_acceptance, learns_metric
        self._by_hand, self._of_loss = step_size, of_loss
        self._until_settled = num_trajectories is None
        self._lengths: tuple[int, ...] = WINDOWS
        self._least, self._last = LEAST_WINDOWS, LAST_WINDOW
        if of_loss:
            self._least, self._last = LEAST_WINDOWS_OF_LOSS, LAST_WINDOW_OF_LOSS
        if num_trajectories is not None:
            self._last = min(LAST_WINDOW, num_trajectories // 4)
            self._lengths = _doubling(num_trajectories - self._last)
        self._windows, self._has_settled = 0, False  # so far
        first = 0.5 * chains.position.shape[1] ** -0.25 if step_size is None else step_size**0.5
        chains.steps = (first,) * chains.num_groups

    def before_step(self) -> None:
        """Count a trajectory of the run, and see where it begins; no setting changes any more."""
        self.num_steps += 1
        if self.modes is not None:
            self.modes.look(self.chains.position)

    @property
    def least_remaining(self) -> int:
        """Count the trajectories that are still to come if everything settles at once."""
        if self._until_settled:
            return max(0, sum(self._lengths[: self._least]) + self._last - self.num_steps)
        return sum(self._lengths) + self._last - self.num_steps

    def run(
        self,
        after_step: Callable[[str], None],
        spent: Callable[[], bool],
        after_window: Callable[[], None],
    ) -> None:
        """Warm up, or go on after the windows that there were.

        Args:
            after_step: called with "warm-up" after every trajectory.
            spent: whether no more should go into the warm-up; its last window comes all the same.
            after_window: called where `state` and that of the chains are all that there is.
        """
        if self._start is not None and self.num_steps == 0:
            self.modes = self._start()
        while not self._has_settled and self._windows < len(self._lengths):
            before = self.chains.steps
            seen = self._window(self._lengths[self._windows], after_step, spent)
            if spent() and len(seen.losses) < LEAST_SEEN:
                break
            change = self._learn(seen) if self._learns_metric else 1.0
            if self._of_loss:  # the directions that a loss hardly feels may settle later
                change = _largest_ratio(before, self.chains.steps)
            settled = change < SETTLED_RATIO and self._agree(seen)
            self._windows += 1
            enough = self._until_settled and settled and self._windows >= self._least
            self._has_settled = enough or spent()
            after_window()
        last = self._window(self._last, after_step, lambda: False)
        self.chains.measure_temperature(last.positions or [self.chains.position])
        self.chains.take_means(1)
        self.chains.take_own_statistics(1)
        if self.modes is not None:
            self.modes.forget()

    def state(self) -> dict[str, Tensor]:
        """Give what `restore` takes, at the end of a window."""
        counts = {"trajectories": self.num_steps, "windows": self._windows}
        return {name: torch.tensor(n) for name, n in counts.items()} | {
            "has_settled": torch.tensor(self._has_settled)
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on after the last window of a `state`."""
        self.num_steps, self._windows = int(state["trajectories"]), int(state["windows"])
        self._has_settled = bool(state["has_settled"])

    def report(self) -> dict[str, Tensor]:
        """Give what was found, (C,) each."""
        chains = self.chains
        found = {name: value[:, 0].clone() for name, value in chains.settings.items()}
        return {**found, "num_steps": torch.full_like(found["step_size"], chains.num_steps)}

    def _window(
        self, length: int, after_step: Callable[[str], None], spent: Callable[[], bool]
    ) -> Seen:
        """Take trajectories, tuning the steps; return what was seen in the later part."""
        chains, seen = self.chains, Seen([], [], [])
        every = max(1, length * chains.position.numel() // MOST_VALUES)
        logarithms = list[list[float]]()
        for k in range(length):
            chains.advance()
            self.num_steps += 1
            after_step("warm-up")
            if self._by_hand is None and chains.scale == 1.0:
                self._tune((k + 1) ** -LEARNING_EXPONENT)
            if k >= length // 4:
                seen.losses.append(chains.state.log_likelihood)
                logarithms.append([log(step) for step in chains.steps])
                if k % every == 0:
                    seen.positions.append(chains.position)
                    seen.gradients.append(chains.state.gradient)
            if spent():
                break
        if logarithms and self._by_hand is None:
            recent = logarithms[len(logarithms) // 2 :]
            chains.steps = tuple(exp(sum(own) / len(recent)) for own in zip(*recent, strict=True))
        return seen

    def _tune(self, gain: float) -> None:
        chains = self.chains
        accepted = [float(own.mean()) for own in chains.groups(chains.acceptance)]
        found = [
            log(step) + gain * (mean - self._target)
            for step, mean in zip(chains.steps, accepted, strict=True)
        ]
        chains.steps = tuple(exp(min(one, log(LONGEST_STEP))) for one in found)

    def _learn(self, seen: Seen) -> float:
        if len(seen.positions) < 2:
            return 1.0
        chains = self.chains
        every = 1
        if self._of_loss and chains.position.shape[1] > MOST_DENSE:  # many targets, side by side
            rows = len(seen.positions) * chains.num_chains // chains.num_groups
            every = max(1, rows // MOST_ROWS)
        chains.factor, change = chains.factor.refined(
            torch.stack(seen.positions[::every]), torch.stack(seen.gradients[::every])
        )
        return change

    def _agree(self, seen: Seen) -> bool:
        """Say whether R-hat is low within every group: of the loss, or of the positions."""
        draws = seen.losses if self._of_loss else seen.positions
        own = self.chains.groups(torch.stack(draws, 1).double())
        return all(float(split_r_hat(each).max()) < SETTLED_R_HAT for each in own)


def _largest_ratio(before: tuple[float, ...], after: tuple[float, ...]) -> float:
    return exp(max(abs(log(b / a)) for a, b in zip(before, after, strict=True)))


def _doubling(total: int) -> tuple[int, ...]:
    """Split a warm-up of so many trajectories into windows, each about twice the one before.

    Example:
        >>> _doubling(175)
        (25, 50, 100)
    """
    parts, length = list[int](), WINDOWS[0]
    while total > 0:
        length = total if total < 3 * length else length
        parts.append(length)
        total, length = total - length, 2 * length
    return tuple(parts)
