"""One run of a kernel on a target, from its parts to its DataTree."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import xarray as xr

from ppl_fe.files.digest import digest
from ppl_fe.inference.program.density import merge_blocks
from ppl_fe.inference.pyro_kernel import PyroKernel
from ppl_fe.inference.record.recorder import Recorder
from ppl_fe.inference.record.zarr_store import Store
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
    """Draws a chain by itself; called with its number.

    Attributes:
        kernel: the sampler.
        target: of all chains.
        plan: likewise.
    """

    kernel: PyroKernel
    target: Target
    plan: RunPlan

    def __call__(self, chain: int) -> Part:
        """Give its part.

        Raises:
            DivergedError: it failed.
            KeyboardInterrupt: Ctrl-C.
        """
        sampling = Sampling(self.kernel, self.target.of_chain(chain), self.plan.of_chain(chain))
        sampling.begin()
        found = sampling.draw()
        return Part(*found.recorder.contents(), found.facts)


def _collect_in_processes(
    draw: OneChain, store: Store | None, workers: Workers | None
) -> Collected:
    """Collect all draws of chains that run in a process each."""
    started = time.perf_counter()
    kernel, target, plan = draw.kernel, draw.target, draw.plan
    if workers is None:
        parts = in_processes(draw, plan.num_chains)
    else:
        folder = None if store is None else store.path.with_name(f"{store.path.name}.tasks")
        parts = at_workers(workers, draw, plan.num_chains, folder, progress=plan.progress)
    part = joined(parts)
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
    if store is not None:
        store.append(part.draws)
    facts = part.facts | {"sampling_time": time.perf_counter() - started}
    return Collected(recorder, part.failed, facts, False)
