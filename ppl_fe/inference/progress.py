"""The progress bar of a run: steps, loss, step size, split R-hat of the loss."""

from __future__ import annotations

import time
from typing import Any

import torch

from ppl_fe.inference.chains import Chains
from ppl_fe.inference.draws import Recorder
from ppl_fe.inference.moments import split_r_hat


class Watch:
    """Feeds the progress bar; looks at the clock rather than at every step's numbers."""

    def __init__(
        self,
        bar: Any,
        chains: Chains,
        recorder: Recorder,
        num_groups: int,
        seconds: float = 0.5,
    ) -> None:
        self.bar, self.chains, self.recorder, self.seconds = bar, chains, recorder, seconds
        self.num_groups = num_groups
        self.pending, self.last = 0, time.perf_counter()

    def skip(self, num_steps: int) -> None:
        """Steps that a resumed run took before."""
        self.bar.update(num_steps)

    def after_step(self, phase: str) -> None:
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
