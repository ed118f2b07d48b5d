"""Choose step size and friction by the curvature and gradient noise that chains meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_fe.inference.dynamics import Dynamics, Measured, Preconditioned
from ppl_fe.inference.schedules import Cyclical
from ppl_fe.inference.step.chains import Chains
from ppl_fe.inference.warmup.curvature import (
    SlowestDirection,
    Stiffest,
    largest_step_within,
    noise_variance,
    stiffest,
)

NUM_ROUNDS, LEAST_ROUNDS = 20, 5
STEPS_A_ROUND = 20  # at least: a round takes eight gradients, and should not cost more than steps
# While the chains still descend, gradient noise biases nothing and a bold step is only fast.
DESCENT_SHARE, DESCENT_TOLERANCE = 0.3, 0.5
UPPER_QUANTILE = 0.99


class Tuning(NamedTuple):
    """What a kernel leaves to its warm-up.

    dynamics: the sampler. schedule: k -> ε_k, or None where the step size is automatic or tuned.
    automatic: names of the settings to choose. tolerance: of the excess temperature.
    exact_gradient: whether the kernel's gradient has no minibatch noise. tune: chooses settings by
    what was measured, as `Dynamics.tune` does.
    """

    dynamics: Dynamics
    schedule: Callable[[int], float] | None
    automatic: tuple[str, ...]
    tolerance: float
    exact_gradient: bool
    tune: Callable[[Measured, float, Tensor | None], dict[str, Tensor]]


class Adaptation:
    """Tunes the settings of `Chains` while they warm up and holds them fixed afterwards.

    At twenty times spread over the warm-up, fewer where it is short, the largest curvature of
    −log p is measured at each chain's position by power iteration on Hessian-vector products
    (differences of the same traced gradient), together with the variance of the minibatch gradient
    along it. The settings follow from an upper quantile over chains and the later half of the
    rounds so far: the curvature at the start misleads, and along the chain it varies. A
    preconditioned sampler is measured in the coordinates w/√G of its present metric. Afterwards
    nothing adapts, so the sampling phase is a Markov chain.

    Args:
        tuning: what is automatic, and how exactly.
        chains: whose settings are tuned.
        warmup_steps: the length of the warm-up.
        least_curvature: a known lower bound on the curvature of the slowest direction (a localised
            posterior's γ); by default it is estimated by 1/variance of the widest coordinate.
        num_groups: chains are tuned together within equal consecutive groups (one group a
            checkpoint when several are ranked side by side). Default 1.

    Attributes:
        found: what the settings follow from, at the temperature asked for.
        direction: the stiffest, of the last round; None before the first.
        num_steps: steps so far.
        exploring: a cyclical schedule is at its hot end, where the temperature is zero.
    """

    def __init__(
        self,
        tuning: Tuning,
        chains: Chains,
        warmup_steps: int,
        *,
        least_curvature: float | None = None,
        num_groups: int = 1,
    ) -> None:
        self.tuning, self.chains, self.warmup_steps = tuning, chains, warmup_steps
        self.num_groups = num_groups
        self.exact_gradient = tuning.exact_gradient or not chains.has_gradient_noise
        self.num_steps, self.exploring = 0, False
        self._scheduled: float | None = None
        rounds = min(NUM_ROUNDS, max(LEAST_ROUNDS, warmup_steps // STEPS_A_ROUND))
        self._every = max(1, warmup_steps // rounds)
        self._history: list[tuple[Tensor, Tensor]] = []
        self.direction: Stiffest | None = None
        self._slowest = SlowestDirection(
            chains, least_curvature, max(1, self._every // 10), num_groups
        )
        asked = chains.settings["temperature"].clone()
        one = torch.ones_like(asked)
        self.found = Measured(one, one, torch.zeros_like(one), asked)

    def before_step(self) -> None:
        """Set what the next step needs; call once before every step, of warm-up and sampling."""
        schedule, settings = self.tuning.schedule, self.chains.settings
        if schedule is not None:
            step_size = schedule(self.num_steps)
            if step_size != self._scheduled:  # the call costs as much as a tenth of a small step
                self._scheduled = step_size
                settings["step_size"].fill_(step_size)
        if isinstance(schedule, Cyclical):
            self.exploring = schedule.explores(self.num_steps)
            asked = self.found.temperature
            settings["temperature"].copy_(torch.zeros_like(asked) if self.exploring else asked)
        dynamics = self.tuning.dynamics
        if self.num_steps == self.warmup_steps and isinstance(dynamics, Preconditioned):
            for name, value in dynamics.after_warmup.items():
                settings[name].fill_(value)
        if self.tuning.automatic and self.num_steps < max(1, self.warmup_steps):
            # Powers of two as well: a start far out is stiff, and its step should not last.
            step = self.num_steps
            due = step % self._every == 0 or (step < self._every and step & (step - 1) == 0)
            if due and not self._is_known():
                self.measure()
            self._slowest.watch(step)
        self.num_steps += 1

    def measure(self) -> None:
        """Take one round: curvature and noise at the present positions, then new settings."""
        self.direction = found = stiffest(self.chains, self.direction)
        if self.exact_gradient:
            noise = torch.zeros_like(found.curvature)
        else:
            noise = noise_variance(self.chains, found)
        self._history.append((found.curvature, noise))
        recent = self._history[len(self._history) // 2 :]
        largest = self._upper(torch.stack([c for c, _ in recent]))
        self.found = Measured(
            largest,
            self._slowest.curvature(largest),
            self._upper(torch.stack([n for _, n in recent])),
            self.found.temperature,
        )
        self._choose()

    def forget(self) -> None:
        """Start measuring again: the chains' coordinates have changed."""
        self.direction = None
        self._history.clear()
        self._slowest.forget()

    def state(self) -> dict[str, Tensor]:
        """Give what `restore` takes: what was measured so far."""
        values = {f"found_{name}": value for name, value in self.found._asdict().items()}
        if self.direction is not None:
            values |= self.direction._asdict()
        if self._history:
            values["history"] = torch.stack([torch.stack(both) for both in self._history])
        values |= self._slowest.state()
        values["num_steps"] = torch.tensor(self.num_steps)
        return {name: value.clone() for name, value in values.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state` of an equal adaptation; the settings themselves are the chains'."""
        like = self.found.temperature
        own = {name: value.to(like) for name, value in state.items() if name != "num_steps"}
        self.found = Measured(*(own[f"found_{name}"] for name in Measured._fields))
        if "direction" in own:
            self.direction = Stiffest(own["curvature"], own["direction"])
        self._history = [(both[0], both[1]) for both in own.get("history", ())]
        self._slowest.restore(own)
        self.num_steps = int(state["num_steps"])

    def report(self) -> dict[str, Tensor]:
        """Return settings, curvatures, predicted excess temperature and relaxation, (C,) each."""
        dynamics, settings = self.tuning.dynamics, self._at_temperature()
        values = {name: value for name, value in settings.items() if name != "temperature"}
        if self.tuning.automatic:
            found = self.found
            values |= {
                "stiffest_curvature": found.stiffest,
                "slowest_curvature": found.slowest,
                "gradient_noise": found.noise,
                "excess_temperature": dynamics.excess_temperature(
                    found.stiffest, found.noise, settings
                ),
                "relaxation_steps": dynamics.relaxation_steps(found.slowest, settings),
            }
        return {name: value[:, 0].clone() for name, value in values.items()}

    def relaxation(self, stiffer: float = 1.0, *, noisy: bool = True) -> float | None:
        """Predict the steps in which the slowest direction of any chain forgets its start.

        Args:
            stiffer: as if the slowest curvature were so many times what it is, and all others by as
                much larger as that adds: what a stronger localiser does. Default 1.
            noisy: or as if gradients were exact. Default True.

        Returns:
            None where nothing is tuned, or the chains have failed.
        """
        if not self.tuning.automatic:
            return None
        found = self.found
        found = found._replace(
            stiffest=found.stiffest + (stiffer - 1) * found.slowest,
            slowest=stiffer * found.slowest,
            noise=found.noise if noisy else torch.zeros_like(found.noise),
        )
        settings = self._at_temperature() | self._tuned(found, self.tuning.tolerance)
        steps = self.tuning.dynamics.relaxation_steps(found.slowest, settings)
        finite = steps[steps.isfinite()]
        return float(finite.max()) if len(finite) else None

    def _choose(self) -> None:
        """Set what is automatic by what was found.

        Raises:
            FloatingPointError: the gradient is not finite at any chain.
        """
        found, tolerance = self.found, self.tuning.tolerance
        descends = not self.chains.near_mode
        if descends and self.num_steps < DESCENT_SHARE * self.warmup_steps:
            found = found._replace(noise=torch.zeros_like(found.noise))
            tolerance = DESCENT_TOLERANCE
        tuned = self._tuned(found, tolerance)
        for name, value in tuned.items():
            if not torch.isfinite(value).any():
                if "step_size" not in tuned:
                    return  # the step given has failed, and the run will refuse it
                raise FloatingPointError(
                    f"no {name} could be chosen: the gradient is not finite at step "
                    f"{self.num_steps} of the warm-up; check the data and the starts, or give "
                    f"{name} as a number"
                )
            self.chains.settings[name].copy_(value)

    def _is_known(self) -> bool:
        """Say whether nothing that could still be measured would change a setting.

        Exact gradients have no noise, and of a localised posterior the slowest curvature is known;
        at a step that is given, a friction does not depend on the stiffest.
        """
        exact = self.exact_gradient and self._slowest.known is not None
        moving = isinstance(self.tuning.dynamics, Preconditioned) or self.chains.metric is not None
        if self.direction is None or not exact or moving:
            return False
        found = self.found
        stiffer = found._replace(stiffest=2 * found.stiffest)
        now, then = (self._tuned(one, self.tuning.tolerance) for one in (found, stiffer))
        return all(torch.equal(now[name], then[name]) for name in now)

    def _tuned(self, found: Measured, tolerance: float) -> dict[str, Tensor]:
        """Choose what is automatic, (C, 1) each, by curvatures and noise."""
        dynamics, automatic = self.tuning.dynamics, self.tuning.automatic
        settings = self._at_temperature()
        by_hand = None if "step_size" in automatic else settings["step_size"]
        tuned = self.tuning.tune(found, tolerance, by_hand)
        if by_hand is None and not tuned.keys() <= set(automatic):
            # The step was chosen along with a friction, say, that is not the one given by hand.
            settings |= {name: tuned[name] for name in automatic}
            tuned["step_size"] = largest_step_within(
                dynamics, found.stiffest, found.noise, settings, tolerance
            )
        return {name: tuned[name] for name in automatic}

    def _at_temperature(self) -> dict[str, Tensor]:
        """Copy the settings at the temperature asked for, which exploration sets to zero."""
        return {**self.chains.settings, "temperature": self.found.temperature}

    def _upper(self, values: Tensor) -> Tensor:
        """Take the upper quantile (C, 1) of values (rounds, C, 1), over a group's finite chains."""
        rounds, num_chains, _ = values.shape
        values = values.where(values.isfinite(), torch.nan)
        grouped = values.reshape(rounds, self.num_groups, -1).transpose(0, 1)
        upper = grouped.reshape(self.num_groups, -1).nanquantile(UPPER_QUANTILE, dim=1)
        return upper.repeat_interleave(num_chains // self.num_groups)[:, None]
