"""Learn in warm-up, besides the step size, what a run holds fixed in its draws.

These are the anchor of control variates, the dense metric, and the centre and direction of the
configurational temperature. All of them come from the chains' own draws since the last such event,
so each is better than the one before; after warm-up nothing changes, and the draws are those of a
Markov chain.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ppl_fe.diverged import DivergedError
from ppl_fe.inference.step.chains import Chains
from ppl_fe.inference.warmup.curvature import largest_stable_step, stiffest
from ppl_fe.inference.warmup.step_size import Adaptation

EVENTS = (1 / 8, 1 / 4, 1 / 2, 3 / 4)  # shares of the warm-up
SNAPSHOTS = 1000  # draws of each chain that a new metric is learnt from, at most


class Phases:
    """The two phases of a run: chains learn in the first, and draw in the second.

    Call `before_step` before every step of the warm-up, and `begin_sampling` after it.

    Args:
        chains: of the run.
        adaptation: of their settings.
        warmup_steps: length of the first phase.
        center: (C, D), where the target is known to be centred (w*): the anchor and the centre of
            the temperature, from the start. By default they are learnt.

    Attributes:
        num_steps: of the warm-up, so far.
    """

    def __init__(
        self,
        chains: Chains,
        adaptation: Adaptation,
        warmup_steps: int,
        center: Tensor | None = None,
    ) -> None:
        self.chains, self.adaptation, self.center = chains, adaptation, center
        self.warmup_steps, self.num_steps = warmup_steps, 0
        self._events = {round(share * warmup_steps) for share in EVENTS}
        self._every = max(1, warmup_steps // (4 * SNAPSHOTS))
        self._mean, self._count = torch.zeros_like(chains.state.position), 0
        self._snapshots: list[Tensor] = []

    def before_step(self) -> None:
        """Remember the present draw; at an event of the warm-up, first learn from those so far."""
        step = self.num_steps
        self.num_steps += 1
        if step in self._events and self._count:
            self._learn()
        own = self.chains.state.position
        self._count += 1
        if self.center is None:
            self._mean.lerp_(own, 1 / self._count)
        if self.chains.metric is not None and step % self._every == 0:
            self._snapshots.append(own.clone())

    def begin_sampling(self) -> None:
        """Fix where the temperature is measured, and refuse a step that no chain can keep.

        Raises:
            DivergedError: a step size given by hand at which every chain is unstable.
        """
        chains = self.chains
        found = self.adaptation.direction or stiffest(chains)
        if self.center is None:
            center = self._mean if self._count else chains.state.position
        else:
            metric = chains.metric
            center = self.center if metric is None else metric.from_position(self.center)
        chains.measure_temperature(center, found.direction)
        if self.warmup_steps and "step_size" not in self.adaptation.tuning.automatic:
            refuse_unstable(chains, self._curvature(found.curvature))

    def state(self) -> dict[str, Tensor]:
        """Give what `restore` takes: what is remembered since the last event."""
        counts = {"num_steps": torch.tensor(self.num_steps), "count": torch.tensor(self._count)}
        seen = {"snapshots": torch.stack(self._snapshots)} if self._snapshots else {}
        return {"mean": self._mean, **counts, **seen}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state` of equal phases."""
        self.num_steps, self._count = int(state["num_steps"]), int(state["count"])
        self._mean = state["mean"].to(self._mean)
        if "snapshots" in state:
            self._snapshots = [*state["snapshots"].to(self._mean)]

    def _curvature(self, found: Tensor) -> Tensor:
        """Return the curvature (C, 1) found, or that at the start of chains too far off for it.

        An unstable chain may be at 1e20 and still finite, where gradients have no difference left.
        """
        chains, state = self.chains, self.chains.state
        far = state.position.abs().amax(-1, keepdim=True)
        lost = far * torch.finfo(far.dtype).eps > 0.01 * found.rsqrt()
        if not lost.any():
            return found
        chains.start_at(chains.start)
        at_start = stiffest(chains).curvature
        chains.state = state
        return torch.where(lost, at_start, found)

    def _learn(self) -> None:
        mean = self._mean
        known = self.center is not None or self.chains.near_mode
        if self.chains.anchor is not None and not known:
            metric = self.chains.metric
            self.chains.set_anchor(mean if metric is None else metric.to_position(mean))
        if self.chains.metric is not None:
            draws = torch.stack(self._snapshots, 1)  # (C, S, D)
            finite = draws[draws.isfinite().all(-1).all(-1)]
            if len(finite):
                # In whitened coordinates every direction relaxes like one of curvature one.
                ones = torch.ones_like(draws[:, 0, :1])
                relaxation = self.chains.dynamics.relaxation_steps(ones, self.chains.settings)
                num_effective = len(finite) * self._count / float(relaxation.max())
                u = finite.flatten(0, 1)
                self.chains.set_metric(self.chains.metric.refine(u, num_effective))
                self.adaptation.forget()
                self.adaptation.measure()
        self._forget()

    def _forget(self) -> None:
        self._mean, self._count, self._snapshots = torch.zeros_like(self._mean), 0, []


def refuse_unstable(chains: Chains, curvature: Tensor) -> None:
    """Refuse a step size beyond the largest stable one of every chain.

    Args:
        chains: of the run.
        curvature: (C, 1), the largest.

    Raises:
        FloatingPointError: the step size, and the largest stable one.
    """
    settings = chains.settings
    excess = chains.dynamics.excess_temperature(curvature, torch.zeros_like(curvature), settings)
    if bool((excess.isinf() & curvature.isfinite()).all()):
        largest = largest_stable_step(chains.dynamics, curvature, settings).min().item()
        raise DivergedError(
            f"step_size={settings['step_size'].max().item():.3g} is unstable: the log-posterior's "
            f"largest curvature along the chains is {curvature.max().item():.3g}, which allows "
            f"steps up to {largest:.3g}; give a smaller step_size, or 'auto'"
        )
