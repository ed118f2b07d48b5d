"""One run of a kernel on a target, from its parts to its DataTree."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import xarray as xr

from ppl_fe.files.digest import digest
from ppl_fe.inference.program.density import merge_blocks
from ppl_fe.inference.pyro_kernel import PyroKernel
from ppl_fe.inference.record.recorder import Recorder
from ppl_fe.inference.record.zarr_store import Store, is_stored
from ppl_fe.inference.run.identity import fingerprint, identity, refuse_other_run
from ppl_fe.inference.run.loop import Collected, Sampling
from ppl_fe.inference.run.parallel import Part, at_workers, in_processes, joined
from ppl_fe.inference.run_plan import RunPlan, Target
from ppl_fe.ranks import SAME_ROUNDING, are_several, refuse_differences, told_by_first
from ppl_fe.tasks.workers import Workers


def run(
    kernel: PyroKernel,
    target: Target,
    plan: RunPlan,
    attributes: Mapping[str, Any] | None = None,
    data: Mapping[str, xr.Dataset] | None = None,
    workers: Workers | None = None,
) -> xr.DataTree:
    """Sample a density that is already built: what `sample` and the estimators call.

    Args:
        kernel: the sampler.
        target: what is sampled.
        plan: how.
        attributes: more facts to keep with the draws, none by default.
        data: more groups to keep beside them, none by default.
        workers: that chains of a process each are sent to; forked ones by default.

    Returns:
        The draws, as `sample` describes them.

    Raises:
        BlockingIOError: another process writes to `save_to`.
        FileExistsError: the folder `save_to` exists.
        FileNotFoundError: there is nothing to resume.
        OSError: `save_to` cannot be written to, or the disk is full.
        DivergedError: no chain stayed finite.
        ValueError: the run to resume had other settings, data or program, or is damaged; ranks that
            were not called alike.
    """
    facts = identity(kernel, target, plan)
    parallel = plan.chain_method == "parallel"
    if are_several():
        _refuse_other_ranks(facts, target, plan)
    store = None
    with ExitStack() as held:

        def opened(path: str | Path) -> xr.DataTree | None:
            """Open the store, and give its draws if it is complete."""
            nonlocal store
            store = held.enter_context(closing(Store(path, resume=plan.resume)))
            store.facts = facts | fingerprint(target)  # which reads all the data
            if not store.complete:
                return None
            refuse_other_run(store.path, store.facts, store.stored_facts)
            return store.finished()

        if plan.save_to is not None:
            complete = told_by_first(partial(opened, plan.save_to))
            if complete is not None:
                return complete
        if parallel:
            found = _collect_in_processes(OneChain(kernel, target, plan), store, workers)
        else:
            sampling = Sampling(kernel, target, plan, store)
            with sampling.watch.bar:
                sampling.begin()
                found = sampling.draw()
            refuse_differences({"draws": digest({"": sampling.chains.position})}, SAME_ROUNDING)
        if found.failed:
            warnings.warn(
                "left out: " + "; ".join(f"chain {c}, {why}" for c, why in found.failed.items()),
                RuntimeWarning,
                stacklevel=3,
            )
        return found.recorder.finish(
            found.failed,
            {
                "inference_library": "ppl_fe",
                **facts,
                **found.facts,
                "chain_method": "parallel" if parallel else found.facts["chain_method"],
                "interrupted": found.interrupted,
                "failed_chains": {str(chain): why for chain, why in found.failed.items()},
                **(attributes or {}),
            },
            data,
            complete=not found.interrupted or bool(found.failed),
        )


def _refuse_other_ranks(facts: Mapping[str, Any], target: Target, plan: RunPlan) -> None:
    """Refuse ranks that were not called alike, and chains that have a process each already.

    Raises:
        ValueError: as it says.
    """
    if plan.chain_method == "parallel":
        raise ValueError(
            "chain_method='parallel' gives each chain a process, and here torch.distributed has "
            "several for all chains: leave chain_method out, or torch.distributed uninitialised"
        )
    how = {"compile": plan.compile, "save_to": plan.save_to is not None, "resume": plan.resume}
    refuse_differences({**facts, **fingerprint(target), **how})


@dataclass(frozen=True)
class OneChain:
    """Draws a chain by itself, or goes on with it; called with its number.

    Attributes:
        kernel: the sampler.
        target: of all chains.
        plan: likewise.
        folder: in which each chain has a store of its own; None to keep none.
        facts: what identifies the run of all chains.
    """

    kernel: PyroKernel
    target: Target
    plan: RunPlan
    folder: Path | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, chain: int) -> Part:
        """Give its part.

        Raises:
            BlockingIOError: another process draws it.
            DivergedError: it failed.
            KeyboardInterrupt: Ctrl-C.
        """
        if self.folder is None:
            return self._part(chain, self.plan.of_chain(chain))
        path = self.folder / str(chain)
        resume = is_stored(path)
        if not resume:  # its last run had diverged
            shutil.rmtree(path, ignore_errors=True)
        with closing(Store(path, resume=resume)) as store:
            store.facts = dict(self.facts)
            return self._part(chain, self.plan.of_chain(chain, path, resume=resume), store)

    def _part(self, chain: int, plan: RunPlan, store: Store | None = None) -> Part:
        sampling = Sampling(self.kernel, self.target.of_chain(chain), plan, store)
        sampling.begin()
        found = sampling.draw()
        if found.interrupted:
            raise KeyboardInterrupt
        contents = found.recorder.contents()
        sampling.remember()  # that it is done
        return Part(*contents, found.facts)


def _collect_in_processes(
    draw: OneChain, store: Store | None, workers: Workers | None
) -> Collected:
    """Collect all draws of chains that run in a process each.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the message says what is kept.
    """
    started = time.perf_counter()
    kernel, target, plan = draw.kernel, draw.target, draw.plan
    if store is not None:
        draw = replace(draw, folder=store.chains, facts=store.facts)
        _begin_or_go_on(store, resume=plan.resume)
    try:
        if workers is None:
            parts = in_processes(draw, plan.num_chains)
        else:
            folder = None if store is None else store.path / "tasks"
            parts = at_workers(workers, draw, plan.num_chains, folder, progress=plan.progress)
        part = joined(parts)
    except FloatingPointError:
        if store is not None:
            shutil.rmtree(store.path, ignore_errors=True)
            store.abandon()
        raise
    except KeyboardInterrupt:
        if store is None:
            raise
        raise KeyboardInterrupt(
            f"the run was stopped, and {store.path} keeps what each chain committed: the same call "
            "with resume=True goes on with it"
        ) from None
    density = target.density
    recorder = Recorder(
        density,
        merge_blocks(target.blocks or density.blocks),
        plan.num_chains,
        plan.length.num_samples,
        store,
        target.num_groups,
        kernel.own_statistics,
    )
    recorder.restore(part.draws, part.moments)
    facts = part.facts | {"sampling_time": time.perf_counter() - started}
    return Collected(recorder, part.failed, facts, False)


def _begin_or_go_on(store: Store, *, resume: bool) -> None:
    """Say in a store that chains run by themselves, or see that they did so in the stored run.

    Raises:
        ValueError: the stored run had other settings, data or program, or is damaged.
    """
    found = {"chain_method": "parallel"}
    if resume:
        refuse_other_run(store.path, {**store.facts, **found}, store.recall().facts)
    else:
        store.remember({}, found, 0)
