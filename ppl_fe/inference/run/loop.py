"""The loop of a run: warm-up, draws of `thinning` steps each, failures, interruption, resuming."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping
from functools import partial
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_fe.files.state_file import in_one, in_parts
from ppl_fe.inference.pyro_kernel import PyroKernel
from ppl_fe.inference.record.recorder import Recorder
from ppl_fe.inference.record.zarr_folder import Arrays
from ppl_fe.inference.record.zarr_store import Stopped, Store
from ppl_fe.inference.run.failed_chains import failures, stop_if_all_failed
from ppl_fe.inference.run.forecast import Prospect, look_ahead
from ppl_fe.inference.run.identity import refuse_other_run
from ppl_fe.inference.run.interrupts import Interrupts
from ppl_fe.inference.run.progress import Watch
from ppl_fe.inference.run.until import LEGS_TO_COME, Until
from ppl_fe.inference.run.warm_up import CHECK_EVERY, Events, WarmUp
from ppl_fe.inference.run_plan import RunPlan, Target
from ppl_fe.inference.step.chains import Chains
from ppl_fe.inference.step.step_function import Statistics
from ppl_fe.inference.step.trajectories import Trajectories
from ppl_fe.inference.warmup.other_modes import OtherModes
from ppl_fe.inference.warmup.step_size import Adaptation
from ppl_fe.inference.warmup.windows import Windows
from ppl_fe.ranks import are_several, told_by_first


class Collected(NamedTuple):
    """A run's draws, still in their recorder.

    failed: chain -> why. facts: the attributes that the run found out. interrupted: by Ctrl-C.
    """

    recorder: Recorder
    failed: dict[int, str]
    facts: dict[str, Any]
    interrupted: bool


class Sampling:
    """Run the chains of one process: `begin`, then `draw`.

    Args:
        kernel: the sampler.
        target: what is sampled.
        plan: how.
        store: where draws go on disk, nowhere by default.
    """

    def __init__(
        self,
        kernel: PyroKernel,
        target: Target,
        plan: RunPlan,
        store: Store | None = None,
    ) -> None:
        self._begun = time.perf_counter()
        self.kernel, self.target, self.plan, self.store = kernel, target, plan, store
        prepared = kernel.prepare(target, plan)
        self.chains: Chains | Trajectories = prepared.chains
        chains = self.chains
        self.thinning = plan.length.thinning
        self.until = None if plan.until is None else Until(plan.until)
        self.recorder = Recorder(
            chains.density,
            chains.blocks,
            plan.num_chains,
            plan.length.num_samples,
            store,
            target.num_groups,
            kernel.own_statistics,
            halves=plan.until is not None,
        )
        self.found = {
            "chain_method": "vectorized" if chains.density.way.vectorized else "sequential",
            "compile": chains.compile_mode,
        }
        if isinstance(chains, Chains):  # what "auto" came to
            self.found["metric"] = "identity" if chains.metric is None else "dense"
            self.found["gradient"] = chains.gradient
        self.report: dict[str, Tensor] = {}
        self.watch = Watch(plan, target.num_groups, chains, self.recorder)
        events = Events(
            self.watch.before_step,
            self._after_step,
            partial(self._look_ahead, warmed_up=True),
            self._stop_if_all_failed,
            self._remember_if_due,
            lambda num_steps: self.until is not None and self.until.half_spent(num_steps),
        )
        self.warm_up = WarmUp(kernel, target, plan, prepared, events)

    @property
    def adaptation(self) -> Adaptation | Windows:
        """What tuned the chains, and holds their settings."""
        return self.warm_up.adaptation

    @property
    def modes(self) -> OtherModes | None:
        """Modes that were found at the start beside the largest, if any."""
        return self.adaptation.modes if isinstance(self.adaptation, Windows) else None

    def begin(self) -> None:
        """Warm the chains up, or with `resume` go on where the stored run stands.

        Raises:
            DivergedError: no chain is left, or the step is one that no chain can keep.
            KeyboardInterrupt: Ctrl-C was pressed; the message says what is kept.
            ValueError: the stored run had other settings, data or program, or is damaged.
        """
        if self.plan.resume:
            self._restore()
        if self.warm_up.is_over:
            return
        try:
            self._guess()
            self.warm_up.run()
        except FloatingPointError:
            if self.store is not None:
                self.store.abandon()
            raise
        except KeyboardInterrupt:
            raise self._stopped_in_warm_up() from None
        self.thinning, self.report = self.warm_up.thinning, self.adaptation.report()
        self._expect_draws()

    def draw(self) -> Collected:
        """Collect the draws that are missing.

        Returns:
            All draws, those before Ctrl-C if it was pressed and there are any.

        Raises:
            DivergedError: no chain is left.
            KeyboardInterrupt: Ctrl-C was pressed before the first draw.
        """
        chains, adaptation, recorder = self.chains, self.adaptation, self.recorder
        interrupted = False
        started = time.perf_counter()  # set-up, compilation and warm-up are left out
        self.remember()
        try:
            with Interrupts() as interrupts, torch.no_grad():
                while not self._is_done():
                    num_steps = 0
                    while num_steps < self.thinning:
                        interrupts.check()
                        adaptation.before_step()
                        position = chains.position
                        statistics = chains.advance()
                        self._after_step("sampling")
                        num_steps += 1
                        if adaptation.exploring:  # nothing of a cycle's exploration is kept
                            chains.take_means(1)
                            num_steps = 0
                    if self._keep(position, statistics):
                        self.remember()
                    # What failed stays marked, so a look now and then misses no chain.
                    if recorder.num_draws % CHECK_EVERY == 1:
                        self._stop_if_all_failed()
            self._stop_if_all_failed()
        except KeyboardInterrupt:
            if recorder.num_draws == 0 or are_several():
                raise
            # Only what may be averaged stays in the store, so a chain lost is lost for good.
            ended = self.store is None or bool(self._failed())
            go_on = "" if ended else "; resume=True goes on with them"
            warnings.warn(
                f"interrupted: {recorder.num_draws} of {self.plan.length.num_samples} draws were "
                f"kept{go_on}",
                RuntimeWarning,
                stacklevel=4,
            )
            interrupted = True
        except FloatingPointError:
            if self.store is not None:
                self.store.abandon()
            raise
        seconds = time.perf_counter() - started
        known: dict[str, Any] = {f"tuned_{name}": value for name, value in self.report.items()}
        if self.modes is not None:
            known["unvisited_modes"] = json.dumps(self.modes.missing(self.chains.density.blocks))
        known |= {"sampling_time": seconds, "num_gradients": chains.num_gradients}
        facts = {**self.found, **known, **self._reached()}
        return Collected(recorder, self._stop_if_all_failed(), facts, interrupted)

    def remember(self) -> None:
        """Write to the store, if there is one, what a resumed run needs."""
        if self.store is None:
            return
        parts = {
            "run": self.chains.state_dict(),
            "moments": self.recorder.state(),
            "lengths": {
                "thinning": torch.tensor(self.thinning),
                "warmup_steps": torch.tensor(self.warm_up.num_steps),
                "looks": torch.tensor(0 if self.until is None else self.until.looks),
            },
            "report": self.report,
            "modes": {} if self.modes is None else self.modes._asdict(),
            "warm-up": {} if self.warm_up.is_over else self.warm_up.state(),
        }
        self.store.remember(in_one(parts), self.found, self.recorder.num_draws)

    def _after_step(self, phase: str) -> None:
        """Show a step, and as soon as it is known what the run will take, say so."""
        if self.watch.after_step(phase):
            self._look_ahead(warmed_up=False)

    def _guess(self) -> None:
        """Say before the first trajectory, which may itself take long, what the run may take."""
        chains = self.chains
        if isinstance(chains, Trajectories) and not self.watch.said:
            prospect = self._prospect(warmed_up=False)
            assert prospect is not None
            each = chains.mean_num_steps * chains.seconds_of_a_gradient()
            self.watch.guess(self.kernel.settings["sampler"], prospect, each)

    def _look_ahead(self, *, warmed_up: bool) -> None:
        """Say what is still to come, if that is not said and is known by now."""
        if self.watch.said:
            return
        prospect = self._prospect(warmed_up=warmed_up)
        if prospect is not None:
            self.watch.say(self.kernel.settings["sampler"], prospect, last=warmed_up)

    def _prospect(self, *, warmed_up: bool) -> Prospect | None:
        return look_ahead(
            self.chains,
            self.adaptation,
            self.target,
            self.plan,
            taken=self.watch.num_steps,
            warmed_up=warmed_up,
        )

    def _restore(self) -> None:
        """Restore chains, recorder and progress from the store, and the warm-up's report."""
        stopped, draws = told_by_first(self._recall)
        if stopped.facts.get("compile") == "compiled":
            self._expect(inf)  # that run had found on its way that it paid
        parts = in_parts(stopped.state)
        self.chains.load_state_dict(parts["run"])
        self.recorder.restore(draws, parts["moments"])
        self._restore_progress(parts)
        if self.store is not None:
            self.store.cut(stopped.num_draws)  # all that is read is read, and found to be whole

    def _recall(self) -> tuple[Stopped, dict[str, Arrays]]:
        """Read where the stored run stands, and its draws."""
        assert self.store is not None
        stopped = self.store.recall()
        asked = {**self.store.facts, **self.found}
        if self.plan.compile == "auto" and stopped.facts.get("compile") == "compiled":
            asked["compile"] = "compiled"  # which it will be
        refuse_other_run(self.store.path, asked, stopped.facts)
        return stopped, self.store.draws(stopped)

    def _restore_progress(self, parts: Mapping[str, dict[str, Tensor]]) -> None:
        """Go on in the warm-up, or after it with its report and what it found about lengths."""
        num_steps = int(self.chains.totals.num_steps[0])
        self.watch.skip(num_steps)
        if "modes" in parts and isinstance(self.adaptation, Windows):
            self.adaptation.modes = OtherModes(**parts["modes"])
        if "warm-up" in parts:
            self.warm_up.restore(parts["warm-up"])
            return
        self.warm_up.is_over = True
        self._restore_lengths(parts["lengths"])
        # It does not follow from the draws: a cycle's exploration takes steps without any.
        self.adaptation.num_steps = num_steps
        self.report = parts.get("report", {})

    def _restore_lengths(self, lengths: dict[str, Tensor]) -> None:
        """Take over what a run until its targets had found out about its lengths."""
        self.thinning = int(lengths["thinning"])
        self.warm_up.num_steps = int(lengths["warmup_steps"])
        if isinstance(self.adaptation, Adaptation):  # it may have been warmed up anew
            self.adaptation.warmup_steps = self.warm_up.num_steps
        if self.until is not None:
            self.until.looks = int(lengths["looks"])
            self._expect_draws()

    def _is_done(self) -> bool:
        """Say whether all draws are there; of too few effective ones let every second one go."""
        full = self.recorder.num_draws >= self.plan.length.num_samples
        if self.until is None:
            return full
        if self.recorder.num_draws and self.until.out_of_time(self.chains.num_gradients):
            self.until.settle(self.recorder.contents()[0])
            return True
        if not full:
            return False
        draws, _ = self.recorder.contents()
        if self.until.is_done(draws, self.chains.num_gradients):
            return True
        self.recorder.halve()
        self.thinning *= 2
        self._expect_draws(LEGS_TO_COME)
        self.remember()  # the draws in the store are others now
        return False

    def _expect_draws(self, legs: int = 1) -> None:
        """Expect the draws that are missing, and so many times their steps in all."""
        missing = self.plan.length.num_samples - self.recorder.num_draws
        self.watch.expect(missing * self.thinning)
        self._expect(legs * missing * self.thinning)

    def _expect(self, num_steps: float) -> None:
        """Compile the step if it pays by now: counted, so that equal runs do so together."""
        self.chains.expect(num_steps)
        self.found["compile"] = self.chains.compile_mode

    def _reached(self) -> dict[str, Any]:
        """Give what a run until its targets came to: its lengths, the worst scalars, and why."""
        if self.until is None:
            return {}
        worst = self.until.worst or self.until.look(self.recorder.contents()[0])
        return {
            "num_samples": self.recorder.num_draws,
            "thinning": self.thinning,
            "warmup_steps": self.warm_up.num_steps,
            "seconds": time.perf_counter() - self._begun,
            "worst_r_hat": worst.r_hat[0],
            "worst_r_hat_of": worst.r_hat[1],
            "worst_ess": worst.ess[0],
            "worst_ess_of": worst.ess[1],
            "target_missed": self.until.gave_up,
        }

    def _keep(self, position: Tensor, statistics: Statistics) -> bool:
        """Record a draw; return whether it, and all before it, are in the store."""
        chains = self.chains
        loss, virials = chains.take_means(self.thinning)
        step_size = chains.settings["step_size"][:, 0]
        own = chains.take_own_statistics(self.thinning)
        return self.recorder.add(position, statistics, loss, virials, step_size, own)

    def _failed(self) -> dict[int, str]:
        """Give the chains that failed, and why; of trajectories none: failures are rejected."""
        if isinstance(self.chains, Trajectories):
            return {}
        return failures(self.chains, self.warm_up.num_steps)

    def _stop_if_all_failed(self) -> dict[int, str]:
        """Give the chains that failed, and why; raise where no other is left."""
        failed = self._failed()
        if isinstance(self.chains, Chains):
            stop_if_all_failed(failed, self.chains)
        return failed

    def _remember_if_due(self) -> None:
        """Commit within the warm-up, where that is worth its time."""
        if self.store is not None and self.store.is_due():
            self.remember()

    def _stopped_in_warm_up(self) -> KeyboardInterrupt:
        """Say how much is kept of a warm-up that Ctrl-C has ended."""
        if self.store is None or not self.store.resume_file.exists():
            return KeyboardInterrupt()
        return KeyboardInterrupt(
            f"stopped in its warm-up, of which {self.store.resume_file.path} keeps what was "
            "committed: the same call with resume=True goes on with it"
        )
