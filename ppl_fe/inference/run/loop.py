"""The loop of a run: warm-up, draws of `thinning` steps each, failures, interruption, resuming."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from ppl_fe.inference.dynamics import WithMomentum
from ppl_fe.inference.record.recorder import Recorder
from ppl_fe.inference.record.split_statistics import split_r_hat
from ppl_fe.inference.record.zarr_store import Store
from ppl_fe.inference.run.failed_chains import failures, stop_if_all_failed
from ppl_fe.inference.run.run_length import RunLength
from ppl_fe.inference.step.chains import Chains
from ppl_fe.inference.step.step_function import Statistics
from ppl_fe.inference.warmup.learned_in_warmup import Phases
from ppl_fe.inference.warmup.starts import overdispersed_positions
from ppl_fe.inference.warmup.step_size import Adaptation


class Interrupts:
    """While this context lasts, Ctrl-C is only noted; `check` then raises it.

    A second Ctrl-C is raised at once, wherever it falls. Where another handler than Python's own is
    in place, or outside the main thread, nothing changes.

    Example:
        >>> with Interrupts() as interrupts:
        ...     interrupts.check()
    """

    def __enter__(self) -> Self:
        self._asked = False
        in_main = threading.current_thread() is threading.main_thread()
        self._ours = in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._ours:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def check(self) -> None:
        """Raise what was noted.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        if self._asked:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True


CHECK_EVERY = 50  # steps or draws between looks for failed chains: each look costs a wait


@dataclass
class Sampling:
    """The parts of a run, and the order in which they act."""

    chains: Chains
    adaptation: Adaptation
    recorder: Recorder
    length: RunLength
    watch: Watch

    def __post_init__(self) -> None:
        dynamics = self.chains.dynamics
        self.momenta = dynamics if isinstance(dynamics, WithMomentum) else None

    def warm_up(self, center: Tensor | None, least_curvature: float | None, seed: int) -> None:
        """Start overdispersed about a centre if there is one, then tune while the chains move."""
        chains, adaptation = self.chains, self.adaptation
        if center is not None:
            adaptation.measure()
            stiffest = adaptation.found.stiffest
            chains.start_at(
                overdispersed_positions(chains, center, least_curvature or 1.0, stiffest, seed)
            )
        phases = Phases(chains, adaptation, self.length.warmup_steps, center)
        with torch.no_grad():
            for step in range(self.length.warmup_steps):
                phases.before_step()
                self._step("warm-up")
                if step % CHECK_EVERY == 0:
                    self._check()
        phases.begin_sampling()
        chains.take_means(1)

    def go_on(self, store: Store, facts: Mapping[str, Any]) -> dict[str, Tensor]:
        """Put everything where the stored run stands; what its warm-up found.

        Raises:
            ValueError: the stored run had other settings, which are named.
        """
        state, stored = store.recall()
        num_draws = stored.pop("num_draws")
        store.refuse_other_call(facts, stored)
        parts: dict[str, dict[str, Tensor]] = {"run": {}, "moments": {}, "report": {}}
        for key, value in state.items():
            part, name = key.split(":", 1)
            parts[part][name] = value
        self.chains.load_state_dict(parts["run"])
        self.recorder.restore(store.draws(num_draws), parts["moments"])
        # Not to be reckoned from the draws: a cycle's exploration takes steps without any.
        self.adaptation.num_steps = int(self.chains.totals.num_steps[0])
        self.watch.skip(self.adaptation.num_steps)
        return parts["report"]

    def draw(
        self, store: Store | None, facts: Mapping[str, Any], report: Mapping[str, Tensor]
    ) -> bool:
        """Collect the draws that are missing; whether Ctrl-C cut them short."""
        recorder, length = self.recorder, self.length
        if store is not None:
            self._remember(store, facts, report)
        try:
            with Interrupts() as interrupts, torch.no_grad():
                while recorder.num_draws < length.num_samples:
                    if self._one_draw(interrupts) and store is not None:
                        self._remember(store, facts, report)
                    # What failed stays marked, so a look now and then misses no chain.
                    if recorder.num_draws % CHECK_EVERY == 1:
                        self._check()
            self._check()
        except KeyboardInterrupt:
            if recorder.num_draws == 0:
                raise
            # Only what may be averaged stays in the store, so a chain lost is lost for good.
            ended = store is None or bool(failures(self.chains, length.warmup_steps))
            go_on = "" if ended else "; resume=True goes on with them"
            warnings.warn(
                f"interrupted: {recorder.num_draws} of {length.num_samples} draws were kept{go_on}",
                RuntimeWarning,
                stacklevel=4,
            )
            return True
        except FloatingPointError:
            if store is not None:
                store.abandon()
            raise
        return False

    def _one_draw(self, interrupts: Interrupts) -> bool:
        chains, num_steps = self.chains, 0
        while num_steps < self.length.thinning:
            interrupts.check()
            position, statistics = self._step("sampling")
            num_steps += 1
            if self.adaptation.exploring:  # nothing of a cycle's exploration is kept
                chains.take_means(1)
                num_steps = 0
        loss, virials = chains.take_means(num_steps)
        step_size = chains.settings["step_size"][:, 0]
        momenta = self.momenta
        kinetic = None
        if momenta is not None:
            kinetic = momenta.kinetic_temperature(chains.state, chains.settings)
        return self.recorder.add(position, statistics, loss, virials, step_size, kinetic)

    def _step(self, phase: str) -> tuple[Tensor, Statistics]:
        self.adaptation.before_step()
        position = self.chains.position
        statistics = self.chains.advance()
        self.watch.after_step(phase)
        return position, statistics

    def _check(self) -> None:
        if bool((self.chains.totals.failed_at < 0).any()):
            return
        failed = failures(self.chains, self.length.warmup_steps)
        stop_if_all_failed(failed, self.chains)

    def _remember(
        self, store: Store, facts: Mapping[str, Any], report: Mapping[str, Tensor]
    ) -> None:
        parts = {
            "run": self.chains.state_dict(),
            "moments": self.recorder.moments.state(),
            "report": report,
        }
        state = {f"{part}:{k}": v for part, values in parts.items() for k, v in values.items()}
        store.remember(state, {**facts, "num_draws": self.recorder.num_draws})


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
