"""The warm-up of a run, in rounds where it goes on until its targets, and what is kept of it.

What a round has learnt so far is kept with the chains, so that a run that was stopped in its
warm-up goes on from there, bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_fe.files.state_file import in_one, in_parts
from ppl_fe.inference.kernels import Kernel
from ppl_fe.inference.pyro_kernel import Prepared, PyroKernel
from ppl_fe.inference.record.recorder import FLUSH_SECONDS
from ppl_fe.inference.run.forecast import lengths
from ppl_fe.inference.run_plan import RunPlan, Target
from ppl_fe.inference.step.chains import Chains
from ppl_fe.inference.step.trajectories import Trajectories
from ppl_fe.inference.warmup.learned_in_warmup import Phases
from ppl_fe.inference.warmup.starts import overdispersed_positions
from ppl_fe.inference.warmup.step_size import Adaptation
from ppl_fe.inference.warmup.windows import Windows

CHECK_EVERY = 50  # steps or draws between looks for failed chains: each look costs a wait


class Events(NamedTuple):
    """What a run does while it warms up.

    before_step, after_step: show it. has_round: after the first round. check: raises where every
    chain has failed. keep: commits, where that is worth its time. half_spent: whether so many
    steps, or the time so far, are half of what the run may take.
    """

    before_step: Callable[[], None]
    after_step: Callable[[str], None]
    has_round: Callable[[], None]
    check: Callable[[], object]
    keep: Callable[[], None]
    half_spent: Callable[[int], bool]


class WarmUp:
    """Start chains overdispersed about a centre if there is one, and tune them while they move.

    Args:
        kernel: the sampler.
        target: what is sampled.
        plan: how.
        prepared: the chains, and what tunes them.
        events: what the run does meanwhile.

    Attributes:
        adaptation: what tunes the chains in the present round, and holds their settings after it.
        num_steps: of the warm-up, without those of a round after the first that is not over.
        thinning: the steps of a draw, as the run is planned or as the warm-up found them.
        is_over: whether the chains can draw.
    """

    def __init__(
        self,
        kernel: PyroKernel,
        target: Target,
        plan: RunPlan,
        prepared: Prepared[Any, Any],
        events: Events,
    ) -> None:
        self.kernel, self.target, self.plan, self.events = kernel, target, plan, events
        self.chains: Chains | Trajectories = prepared.chains
        self.adaptation: Adaptation | Windows = prepared.adaptation
        self.num_steps, self.thinning = plan.length.warmup_steps, plan.length.thinning
        self.is_over = False
        self._again = 0  # the steps of a round after the first
        self._phases: Phases | None = None
        self._last_kept = time.monotonic()

    def run(self) -> None:
        """Warm up, or go on with the warm-up that was restored.

        Raises:
            DivergedError: no chain is left, or the step is one that no chain can keep.
        """
        if isinstance(self.adaptation, Windows):
            events = self.events
            self.adaptation.run(events.after_step, self._is_half_spent, events.keep)
            self.num_steps = self.adaptation.num_steps
            self.events.has_round()
        else:
            assert isinstance(self.chains, Chains)
            self._run(self.chains, self.adaptation)
        self.is_over = True

    def _run(self, chains: Chains, adaptation: Adaptation) -> None:
        center = self.target.center
        if self._phases is None:
            if center is not None:
                adaptation.measure()
                least, stiffest = self.target.least_curvature or 1.0, adaptation.found.stiffest
                seed = self.plan.seed
                chains.start_at(overdispersed_positions(chains, center, least, stiffest, seed))
            self._phases = Phases(chains, adaptation, self.num_steps, center)
        self._tune(chains, adaptation, self._phases)
        if self.plan.until is not None:
            self.events.has_round()
            self._tune_until_relaxed(chains)

    def _is_half_spent(self) -> bool:
        return self.events.half_spent(self.chains.num_gradients)

    def _tune(self, chains: Chains, adaptation: Adaptation, phases: Phases) -> None:
        """Take the steps of a round that are missing."""
        with torch.no_grad():
            for step in range(phases.num_steps, phases.warmup_steps):
                phases.before_step()
                adaptation.before_step()
                self.events.before_step()
                chains.advance()
                self.events.after_step("warm-up")
                if step % CHECK_EVERY == 0:
                    self.events.check()
                self._keep_at_times(step)
        phases.begin_sampling()
        chains.take_means(1)
        self.num_steps, self._again = self.num_steps + self._again, 0

    def _keep_at_times(self, step: int) -> None:
        late = time.monotonic() - self._last_kept > FLUSH_SECONDS
        if late or (step + 1) % CHECK_EVERY == 0:
            self._last_kept = time.monotonic()
            self.events.keep()

    def _tune_until_relaxed(self, chains: Chains) -> None:
        """Warm up again until that is five relaxation times; then thin by half of one.

        A relaxation time is known only after a warm-up, and the settings that it learns from
        chains far out may be none to draw with.
        """
        assert self.plan.until is not None
        most = self.plan.until.max_steps // 2
        while (relaxation := self.adaptation.report().get("relaxation_steps")) is not None:
            slowest = float(relaxation[relaxation.isfinite()].max())
            length = lengths(slowest, self.plan)
            wanted, self.thinning = length.warmup_steps, length.thinning
            spent = 2 * self.num_steps > most or self.events.half_spent(self.num_steps)
            if wanted <= self.num_steps or spent:
                break
            self._begin_again(min(max(wanted, self.num_steps), most - self.num_steps))
            assert isinstance(self.adaptation, Adaptation)
            assert self._phases is not None
            self._tune(chains, self.adaptation, self._phases)

    def _begin_again(self, num_steps: int) -> None:
        """Make what a round after the first needs."""
        assert isinstance(self.kernel, Kernel)
        assert isinstance(self.chains, Chains)
        self.adaptation = self.kernel.adaptation(self.chains, self.target, num_steps)
        self._phases = Phases(self.chains, self.adaptation, num_steps, self.target.center)
        self._again = num_steps

    def state(self) -> dict[str, Tensor]:
        """Give all that `restore` needs beside the chains, to go on bit for bit."""
        parts = {"adaptation": self.adaptation.state()}
        if self._phases is not None:
            parts["phases"] = self._phases.state()
        if isinstance(self.chains, Chains):
            parts["chains"] = {"start": self.chains.start}
        counts = {"num_steps": self.num_steps, "again": self._again}
        return in_one(parts | {"": {name: torch.tensor(n) for name, n in counts.items()}})

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state`, with chains that were put where they were."""
        parts = in_parts(state)
        self.num_steps = int(parts[""]["num_steps"])
        if isinstance(self.chains, Chains):
            self.chains.start = parts["chains"]["start"].to(self.chains.start)
            again, center = int(parts[""]["again"]), self.target.center
            assert isinstance(self.adaptation, Adaptation)
            if again:
                self._begin_again(again)
            else:
                self._phases = Phases(self.chains, self.adaptation, self.num_steps, center)
            assert self._phases is not None
            self._phases.restore(parts["phases"])
        self.adaptation.restore(parts["adaptation"])
