"""Warm trajectories up: step size and metric in windows, until they and the chains have settled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, log

import torch
from torch import Tensor

from ppl_fe.inference.record.split_statistics import split_r_hat
from ppl_fe.inference.step.trajectories import Trajectories

# Trajectories; each window's metric is that of the next. Three at least, the last for the step.
WINDOWS = (25, 25, 40, 60, 100, 150, 200, 300)
LEAST_WINDOWS, LAST_WINDOW = 3, 30
SETTLED_RATIO, SETTLED_R_HAT = 1.4, 1.1
LONGEST_STEP = 1.8  # of whitened coordinates; 2 is where a normal's step becomes unstable
LEARNING_EXPONENT = 0.6  # of the gain 1/(k + 1)^0.6 (Robbins & Monro 1951)


class Windows:
    """Learn the step size and the metric of trajectories, then hold them fixed.

    In every window h follows log h ← log h + (mean acceptance − target)/(k + 1)^0.6 over all
    chains, and at its end the metric is learnt from its accepted positions and their gradients.
    Windows follow one another until the metric changes by less than 40 % in any direction and the
    chains' split R-hat is below 1.1, or as long as they are given.

    Args:
        chains: to be warmed up.
        target_acceptance: the mean acceptance that the step is to have.
        step_size: ε = h², by default chosen.
        learns_metric: or leaves it as it is.
        num_trajectories: the length of the warm-up; by default until it has settled.

    Attributes:
        num_steps: trajectories so far, in warm-up and after it.
    """

    exploring = False

    def __init__(
        self,
        chains: Trajectories,
        *,
        target_acceptance: float,
        step_size: float | None,
        learns_metric: bool,
        num_trajectories: int | None,
    ) -> None:
        self.chains, self.num_steps = chains, 0
        self._target, self._learns_metric = target_acceptance, learns_metric
        self._by_hand = step_size
        self._until_settled = num_trajectories is None
        self._lengths: tuple[int, ...] = WINDOWS
        self._last = LAST_WINDOW
        if num_trajectories is not None:
            self._last = min(LAST_WINDOW, num_trajectories // 4)
            self._lengths = _doubling(num_trajectories - self._last)
        chains.set_step(
            0.5 * chains.position.shape[1] ** -0.25 if step_size is None else step_size**0.5
        )

    def before_step(self) -> None:
        """Count a trajectory of the run; nothing changes after warm-up."""
        self.num_steps += 1

    def run(self, after_step: Callable[[str], None]) -> None:
        """Warm up, and call `after_step("warm-up")` after every trajectory."""
        for number, length in enumerate(self._lengths):
            positions, gradients = self._window(length, after_step)
            change = self._learn(positions, gradients) if self._learns_metric else 1.0
            r_hat = float(split_r_hat(torch.stack(positions, 1).double()).max())
            settled = change < SETTLED_RATIO and r_hat < SETTLED_R_HAT
            if self._until_settled and settled and number + 1 >= LEAST_WINDOWS:
                break
        last, _ = self._window(self._last, after_step)
        seen = last or [self.chains.position]
        self.chains.measure_temperature(torch.cat(seen).mean(0))
        self.chains.take_means(1)
        self.chains.take_own_statistics(1)

    def report(self) -> dict[str, Tensor]:
        """Give what was found, (C,) each."""
        chains = self.chains
        found = {name: value[:, 0].clone() for name, value in chains.settings.items()}
        return {**found, "num_steps": torch.full_like(found["step_size"], chains.num_steps)}

    def _window(
        self, length: int, after_step: Callable[[str], None]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Take trajectories, tuning the step; return positions and gradients of the later part."""
        chains, positions, gradients = self.chains, list[Tensor](), list[Tensor]()
        logarithms = []
        for k in range(length):
            chains.advance()
            self.num_steps += 1
            after_step("warm-up")
            if self._by_hand is None:
                gain = (k + 1) ** -LEARNING_EXPONENT
                found = log(chains.step) + gain * (float(chains.acceptance.mean()) - self._target)
                chains.set_step(exp(min(found, log(LONGEST_STEP))))
            if k >= length // 4:
                positions.append(chains.position)
                gradients.append(chains.state.gradient)
                logarithms.append(log(chains.step))
        if logarithms and self._by_hand is None:
            recent = logarithms[len(logarithms) // 2 :]
            chains.set_step(exp(sum(recent) / len(recent)))
        return positions, gradients

    def _learn(self, positions: Sequence[Tensor], gradients: Sequence[Tensor]) -> float:
        if len(positions) < 2:
            return 1.0
        factor, change = self.chains.factor.refined(
            torch.cat([*positions]), torch.cat([*gradients])
        )
        self.chains.set_factor(factor)
        return change


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
