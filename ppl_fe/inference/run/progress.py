"""The progress bar of a run, and the line above it on what the run will take."""

from __future__ import annotations

import sys
import time
from statistics import fmean

import torch
from tqdm.auto import tqdm

from ppl_fe.inference.record.recorder import Recorder
from ppl_fe.inference.record.split_statistics import split_r_hat
from ppl_fe.inference.run.forecast import Prospect
from ppl_fe.inference.run.memory import memory_of_run
from ppl_fe.inference.run_plan import RunPlan
from ppl_fe.inference.step.chains import Chains
from ppl_fe.inference.step.trajectories import Trajectories
from ppl_fe.ranks import is_first

TIMED = 50  # steps, by whose mean the rest is judged
VERY_LONG = 120.0  # seconds, from which one wants to know before the first step
PATIENCE, LEAST_TIMED = 10.0, 3  # seconds after which fewer steps must do


class Watch:
    """Feed a progress bar; it looks at the clock rather than at every step's numbers.

    Args:
        plan: the length of the bar, and whether there is one.
        num_groups: of chains that share a target.
        chains: whose step size is shown.
        recorder: whose losses are shown.
        seconds: between two looks, 0.5 by default.

    Attributes:
        bar: the bar itself.
        said: the line on what the run will take was written, or was not worth it.
    """

    def __init__(
        self,
        plan: RunPlan,
        num_groups: int,
        chains: Chains | Trajectories,
        recorder: Recorder,
        seconds: float = 0.5,
    ) -> None:
        shown = plan.progress and is_first()
        self.bar = tqdm(
            total=plan.length.num_steps,
            disable=not shown,
            unit="step",
            leave=False,
        )
        self.chains, self.recorder, self.seconds = chains, recorder, seconds
        self.num_groups = num_groups
        self.said = not shown
        self._pending, self._last = 0, 0.0
        self._started, self._asked, self._first, self._before = False, False, 0.0, 0.0
        self._timed: list[float] = []

    @property
    def num_steps(self) -> int:
        """Count the steps so far."""
        return int(self.bar.n) + self._pending

    def skip(self, num_steps: int) -> None:
        """Count the steps that a resumed run took before."""
        self.bar.update(num_steps)

    def expect(self, num_steps: int) -> None:
        """Set how many steps are still to come, as far as is known by now."""
        self.bar.total = self.num_steps + num_steps

    def say(self, sampler: str, prospect: Prospect, *, last: bool) -> None:
        """Write what the run will take, once, and set the bar to it.

        Args:
            sampler: its name.
            prospect: what is known.
            last: nothing will be known better; otherwise a run that seems short says so later.
        """
        if self.said or not self._timed:
            return
        self.expect(round(prospect.remaining))
        memory = memory_of_run(self.chains, self.recorder)
        line = prospect.line(sampler, fmean(self._timed), memory)
        self.said = last or bool(line)
        if line:
            tqdm.write(line, file=sys.stderr)

    def guess(self, sampler: str, prospect: Prospect, seconds: float) -> None:
        """Write what a run may take that seems very long; what it will take is said later.

        Args:
            sampler: its name.
            prospect: before the first step.
            seconds: for one of what is counted, as far as anything tells.
        """
        if prospect.remaining * seconds > VERY_LONG:
            memory = memory_of_run(self.chains, self.recorder)
            line = prospect.line(f"{sampler}, a first guess by one gradient", seconds, memory)
            tqdm.write(line, file=sys.stderr)

    def before_step(self) -> None:
        """Begin to time a step here: since the end of the one before something was measured."""
        if not self.said:
            self._before = time.perf_counter()

    def after_step(self, phase: str) -> bool:
        """Count a step, and show where the chains stand if it is time to.

        Returns:
            Whether enough steps have just been timed to say what the run will take.
        """
        if self.bar.disable:
            return False
        self._pending += 1
        now = time.perf_counter()
        enough = not self.said and self._time(now)
        if now - self._last >= self.seconds:
            self._show(phase, now)
        return enough

    def _time(self, now: float) -> bool:
        """Note what a step took, but the first, in which things are made that last."""
        if not self._started:
            self._started, self._first = True, now
            bar = self.bar  # whose rate, and what remains, counts from here
            bar.start_t = bar.last_print_t = time.time()
            bar.update(self._pending)
            bar.initial = bar.last_print_n = bar.n
            self._pending, self._last = 0, now
        elif len(self._timed) < TIMED:
            self._timed.append(now - self._before)
            self._before = now
            late = now - self._first >= PATIENCE and len(self._timed) >= LEAST_TIMED
            ask = not self._asked and (late or len(self._timed) == TIMED)
            self._asked |= ask
            return ask
        self._before = now
        return False

    def _show(self, phase: str, now: float) -> None:
        self.bar.update(self._pending)
        shown = {"step size": f"{self.chains.settings['step_size'].max().item():.1e}"}
        if self.recorder.num_draws:
            losses = torch.as_tensor(self.recorder.losses())
            shown["loss"] = f"{losses[:, -1].mean().item():.4f}"
            # Chains of different targets have different losses by right: one R-hat a target.
            grouped = losses.reshape(self.num_groups, -1, losses.shape[1]).permute(1, 2, 0)
            shown["worst R-hat"] = f"{split_r_hat(grouped).max().item():.3f}"
        self.bar.set_postfix({"phase": phase, **shown}, refresh=False)
        self._pending, self._last = 0, now
