"""Step size and friction from the curvature and gradient noise that the chains meet in warm-up."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_fe.diverged import DivergedError
from ppl_fe.inference.dynamics import Dynamics, Measured, Preconditioned
from ppl_fe.inference.schedules import Cyclical
from ppl_fe.inference.step.chains import Chains
from ppl_fe.inference.warmup.curvature import (
    Stiffest,
    largest_step_within,
    metric_scale,
    noise_variance,
    stiffest,
)

NUM_ROUNDS = 20
# While the chains still descend, gradient noise biases nothing and a bold step is only fast.
DESCENT_SHARE, DESCENT_TOLERANCE = 0.3, 0.5
UPPER_QUANTILE = 0.99
# Before the chains have shown their slowest direction, assume a condition number of this.
ASSUMED_CONDITION = 100.0
LARGEST_CONDITION = 1e8
MOST_WATCHED = 1000  # coordinates whose variance is followed to find the slowest direction


class Tuning(NamedTuple):
    """What a kernel leaves to its warm-up.

    dynamics: the sampler. schedule: k -> ε_k, or None where the step size is automatic or tuned.
    automatic: names of the settings to choose. tolerance: of the excess temperature.
    exact_gradient: whether the kernel's gradient has no minibatch noise.
    """

    dynamics: Dynamics
    schedule: Callable[[int], float] | None
    automatic: tuple[str, ...]
    tolerance: float
    exact_gradient: bool


class Adaptation:
    """Tunes the settings of `Chains` while they warm up and holds them fixed afterwards.

    At twenty times spread over the warm-up the largest curvature of −log p is measured at each
    chain's position by power iteration on Hessian-vector products (differences of the same
    traced gradient), together with the variance of the minibatch gradient along it. The settings
    follow from an upper quantile over chains and the later half of the rounds so far: the
    curvature at the start misleads, and along the chain it varies. A preconditioned sampler is
    measured in the coordinates w/√G of its present metric. Afterwards nothing adapts, so the
    sampling phase is a Markov chain.

    Args:
        tuning: what is automatic, and how exactly.
        chains: whose settings are tuned.
        warmup_steps: the length of the warm-up.
        least_curvature: a known lower bound on the curvature of the slowest direction (a localised
            posterior's γ); otherwise it is estimated by 1/variance of the widest coordinate.
        num_groups: chains are tuned together within equal consecutive groups (one group a
            checkpoint when several are ranked side by side).
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
        self.known_least, self.num_groups = least_curvature, num_groups
        self.exact_gradient = tuning.exact_gradient or not chains.has_gradient_noise
        self.num_steps, self.exploring = 0, False
        self._scheduled: float | None = None
        self._temperature = float(chains.settings["temperature"][0])
        self._every = max(1, warmup_steps // NUM_ROUNDS)
        self._history: list[tuple[Tensor, Tensor]] = []
        self.direction: Stiffest | None = None
        self._snapshots: list[Tensor] = []
        start = chains.state.position
        self.stiffest = start.new_ones(len(start), 1)
        self.noise = torch.zeros_like(self.stiffest)
        self.slowest = torch.ones_like(self.stiffest)
        generator = torch.Generator().manual_seed(start.shape[1])
        self._watched = torch.randperm(start.shape[1], generator=generator)[:MOST_WATCHED]

    def before_step(self) -> None:
        """Set what the next step needs; call once before every step, of warm-up and sampling."""
        schedule = self.tuning.schedule
        if schedule is not None:
            step_size = schedule(self.num_steps)
            if step_size != self._scheduled:  # the call costs as much as a tenth of a small step
                self._scheduled = step_size
                self.chains.settings["step_size"].fill_(step_size)
        if isinstance(schedule, Cyclical):
            self.exploring = schedule.explores(self.num_steps)
            self.chains.settings["temperature"].fill_(0.0 if self.exploring else self._temperature)
        dynamics = self.tuning.dynamics
        if self.num_steps == self.warmup_steps and isinstance(dynamics, Preconditioned):
            for name, value in dynamics.after_warmup.items():
                self.chains.settings[name].fill_(value)
        if self.tuning.automatic and self.num_steps < max(1, self.warmup_steps):
            # Powers of two as well: a start far out is stiff, and its step should not last.
            step = self.num_steps
            if step % self._every == 0 or (step < self._every and step & (step - 1) == 0):
                self.measure()
            if self.known_least is None and step % max(1, self._every // 10) == 0:
                self._snapshots.append(self.chains.state.position[:, self._watched])
        self.num_steps += 1

    def measure(self) -> None:
        """One round: curvature and noise at the present positions, then new settings."""
        self.direction = found = stiffest(self.chains, self.direction)
        if self.exact_gradient:
            noise = torch.zeros_like(found.curvature)
        else:
            noise = noise_variance(self.chains, found)
        self._history.append((found.curvature, noise))
        recent = self._history[len(self._history) // 2 :]
        self.stiffest = self._upper(torch.stack([c for c, _ in recent]))
        self.noise = self._upper(torch.stack([n for _, n in recent]))
        self.slowest = self._slowest()
        descends = not self.chains.near_mode
        descending = descends and self.num_steps < DESCENT_SHARE * self.warmup_steps
        noise = torch.zeros_like(self.noise) if descending else self.noise
        tolerance = DESCENT_TOLERANCE if descending else self.tuning.tolerance
        settings, automatic = self._at_temperature(), self.tuning.automatic
        tuned = self.tuning.dynamics.tune(
            Measured(self.stiffest, self.slowest, noise, settings["temperature"]),
            tolerance,
            None if "step_size" in automatic else settings["step_size"],
        )
        if "step_size" in automatic and not tuned.keys() <= set(automatic):
            # The step was chosen along with a friction, say, that is not the one given by hand.
            settings |= {name: tuned[name] for name in automatic}
            tuned["step_size"] = largest_step_within(
                self.tuning.dynamics, self.stiffest, noise, settings, tolerance
            )
        for name in self.tuning.automatic:
            if not torch.isfinite(tuned[name]).any():
                if "step_size" not in self.tuning.automatic:
                    return  # the step given has failed, and the run will say so
                raise DivergedError(
                    f"no {name} could be chosen: the gradient is not finite at step "
                    f"{self.num_steps} of the warm-up; check the data and the starts, or give "
                    f"{name} as a number"
                )
            self.chains.settings[name].copy_(tuned[name])

    def forget(self) -> None:
        """Start measuring anew: the chains' coordinates have changed."""
        self.direction = None
        self._history.clear()
        self._snapshots.clear()

    def report(self) -> dict[str, Tensor]:
        """(C,) each: settings, curvatures, predicted excess temperature and relaxation steps."""
        dynamics, settings = self.tuning.dynamics, self._at_temperature()
        found = {name: value for name, value in settings.items() if name != "temperature"}
        if self.tuning.automatic:
            found |= {
                "stiffest_curvature": self.stiffest,
                "slowest_curvature": self.slowest,
                "gradient_noise": self.noise,
                "excess_temperature": dynamics.excess_temperature(
                    self.stiffest, self.noise, settings
                ),
                "relaxation_steps": dynamics.relaxation_steps(self.slowest, settings),
            }
        return {name: value[:, 0].clone() for name, value in found.items()}

    def _at_temperature(self) -> dict[str, Tensor]:
        """The settings at the temperature asked for, which exploration sets to zero for a while."""
        settings = self.chains.settings
        asked = torch.full_like(settings["temperature"], self._temperature)
        return {**settings, "temperature": asked}

    def _slowest(self) -> Tensor:
        scale = metric_scale(self.chains)
        if self.known_least is not None:
            return self.known_least * scale.amin(-1, keepdim=True).square()
        recent = self._snapshots[2 * len(self._snapshots) // 3 :]
        if len(recent) < 10:
            assumed: Tensor = self.stiffest / ASSUMED_CONDITION
            return assumed
        draws = torch.stack(recent)  # (K, C, D); the chains of a group share one estimate
        # A chain that blew up is left out of the result, and must not mistune the others.
        draws = draws.where(draws.isfinite().all(-1).all(0)[:, None], torch.nan)
        grouped = draws.reshape(len(recent), self.num_groups, -1, draws.shape[-1])
        centred = grouped - grouped.nanmean(dim=(0, 2), keepdim=True)
        if scale.shape[-1] > 1:
            scale = scale[:, self._watched]
        centred = centred / scale.reshape(self.num_groups, -1, scale.shape[-1])
        widest = centred.square().nanmean(dim=(0, 2)).amax(-1)
        slowest = (1 / widest).repeat_interleave(grouped.shape[2])[:, None]
        slowest = torch.minimum(slowest, self.stiffest)
        floored: Tensor = torch.maximum(slowest, self.stiffest / LARGEST_CONDITION)
        return floored

    def _upper(self, values: Tensor) -> Tensor:
        """(rounds, C, 1) -> (C, 1), the upper quantile over rounds and a group's finite chains."""
        rounds, num_chains, _ = values.shape
        values = values.where(values.isfinite(), torch.nan)
        grouped = values.reshape(rounds, self.num_groups, -1).transpose(0, 1)
        upper = grouped.reshape(self.num_groups, -1).nanquantile(UPPER_QUANTILE, dim=1)
        return upper.repeat_interleave(num_chains // self.num_groups)[:, None]
