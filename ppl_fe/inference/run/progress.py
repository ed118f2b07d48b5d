"""The progress bar of a run."""

from __future__ import annotations

import time

import torch
from tqdm.auto import tqdm

from ppl_fe.inference.record.recorder import Recorder
from ppl_fe.inference.record.split_statistics import split_r_hat
from ppl_fe.inference.run_plan import RunPlan
from ppl_fe.inference.step.chains import Chains
from ppl_fe.inference.step.trajectories import Trajectories


class Watch:
    """Feed a progress bar; it looks at the clock rather than at every step's numbers.

    Args:
        plan: the length of the bar, and whether there is one.
        num_groups: of chains that share a target.
        chains: whose step size is shown.
        recorder: whose losses are shown.
        seconds: between two looks, 0.5 by default.
    """

    def __init__(
        self,
        plan: RunPlan,
        num_groups: int,
        chains: Chains | Trajectories,
        recorder: Recorder,
        seconds: float = 0.5,
    ) -> None:
        self.bar = tqdm(
            total=plan.length.num_steps,
            disable=not plan.progress,
            unit="step",
            leave=False,
        )
        self.chains, self.recorder, self.seconds = chains, recorder, seconds
        self.num_groups = num_groups
        self.pending, self.last = 0, time.perf_counter()

    def skip(self, num_steps: int) -> None:
        """Count the steps that a resumed run took before."""
        self.bar.update(num_steps)

    def expect(self, num_steps: int) -> None:
        """Set how many steps are still to come, as far as is known by now."""
        self.bar.total = self.bar.n + self.pending + num_steps

    def after_step(self, phase: str) -> None:
        """Count a step, and show where the chains stand if it is time to."""
        if self.bar.disable:
            return
        self.pending += 1
        now = time.perf_counter()
        if now - self.last < self.seconds:
            return
        self.bar.update(self.pending)
        shown = {"step size": f"{self.chains.settings['step_size'].max().item():.1e}"}
        if self.recorder.num_draws:
            losses = torch.as_tensor(self.recorder.losses())
            shown["loss"] = f"{losses[:, -1].mean().item():.4f}"
            # Chains of different targets have different losses by right: one R-hat a target.
            grouped = losses.reshape(self.num_groups, -1, losses.shape[1]).permute(1, 2, 0)
            shown["worst R-hat"] = f"{split_r_hat(grouped).max().item():.3f}"
        self.bar.set_postfix({"phase": phase, **shown}, refresh=False)
        self.pending, self.last = 0, now
