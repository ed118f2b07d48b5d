"""One run of a kernel on a density, from its parts to its DataTree."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from ppl_fe.data import LoaderData
from ppl_fe.inference.dynamics import WithMomentum
from ppl_fe.inference.kernels import Kernel
from ppl_fe.inference.program.density import Blocks, Density, merge_blocks
from ppl_fe.inference.record.recorder import Recorder, plain
from ppl_fe.inference.record.zarr_store import Store
from ppl_fe.inference.run.failed_chains import failures, stop_if_all_failed
from ppl_fe.inference.run.loop import Sampling, Watch
from ppl_fe.inference.run.parallel import Part, chain_seed, in_processes, joined, of_chain
from ppl_fe.inference.run.run_length import RunLength
from ppl_fe.inference.step.compile import CompileMode
from ppl_fe.inference.warmup.step_size import Adaptation
from ppl_fe.version import __version__


class Collected(NamedTuple):
    """A run's draws, still in their recorder, which chains failed and why, and what is known."""

    recorder: Recorder
    failed: dict[int, str]
    facts: dict[str, Any]
    interrupted: bool


def run(
    kernel: Kernel,
    density: Density,
    length: RunLength,
    *,
    num_chains: int,
    seed: int,
    chain_method: str = "vectorized",
    start: Tensor | None = None,
    save_to: str | Path | None = None,
    resume: bool = False,
    center: Tensor | None = None,
    num_groups: int = 1,
    attributes: Mapping[str, Any] | None = None,
    **how: Any,
) -> xr.DataTree:
    """`sample` on a density that is already built; what the estimators call.

    Args:
        start, center, num_groups and `how`: as in `collect`.
        attributes: more facts to keep with the draws.
    """
    parallel = chain_method == "parallel"
    if resume and (save_to is None or parallel):
        raise ValueError(
            "resume=True goes on with the run at save_to; give save_to"
            if save_to is None
            else "resume=True needs chain_method 'vectorized' or 'sequential'"
        )
    store = None if save_to is None else Store(save_to, resume=resume)
    if store is not None and store.complete:
        told = told_by_the_call(kernel, density, length, num_chains, seed)
        return store.finished({name: plain(value) for name, value in told.items()})
    if parallel:
        started = time.perf_counter()

        def one(chain: int) -> Part:
            own = slice(chain, chain + 1)
            found = collect(
                kernel,
                of_chain(density, chain),
                length,
                num_chains=1,
                seed=chain_seed(seed, chain),
                start=None if start is None else start[own],
                center=None if center is None else center[own],
                **{**how, "progress_bar": False},
            )
            return Part(*found.recorder.contents(), found.facts)

        part = joined(in_processes(one, num_chains))
        recorder = Recorder(
            density,
            merge_blocks(how.get("blocks") or density.blocks),
            num_chains,
            length.num_samples,
            store,
            num_groups,
            isinstance(kernel.dynamics, WithMomentum),
        )
        recorder.restore(part.draws, part.moments)
        if store is not None:
            store.append(part.draws)
        taken = {"sampling_time": time.perf_counter() - started}
        found = Collected(recorder, part.failed, part.facts | taken, False)
    else:
        found = collect(
            kernel,
            density,
            length,
            num_chains=num_chains,
            seed=seed,
            start=start,
            store=store,
            resume=resume,
            center=center,
            num_groups=num_groups,
            **how,
        )
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
            **found.facts,
            "num_chains": num_chains,
            "seed": seed,
            "chain_method": "parallel" if parallel else found.facts["chain_method"],
            "interrupted": found.interrupted,
            "failed_chains": {str(chain): why for chain, why in found.failed.items()},
            **(attributes or {}),
        },
        complete=not found.interrupted or bool(found.failed),
    )


def collect(
    kernel: Kernel,
    density: Density,
    length: RunLength,
    *,
    num_chains: int,
    seed: int,
    start: Tensor | None = None,
    store: Store | None = None,
    resume: bool = False,
    progress_bar: bool = True,
    compile: CompileMode = "auto",
    source: LoaderData | None = None,
    center: Tensor | None = None,
    least_curvature: float | None = None,
    num_groups: int = 1,
    blocks: Blocks | None = None,
    description: str = "",
) -> Collected:
    """All draws of chains in one process.

    Args:
        start: (C, D) unconstrained starts, or the kernel's own.
        center: (C, D), w* of a localised posterior: chains start overdispersed about it
            (`overdispersed_positions`), and control variates and temperatures refer to it.
        least_curvature, num_groups: as in `Adaptation`.
        blocks: as in `Chains`.
    """
    chains = kernel.chains(
        density,
        num_chains,
        seed=seed,
        num_steps=length.num_steps,
        compile=compile,
        start=start if center is None else center,
        source=source,
        blocks=blocks,
    )
    recorder = Recorder(
        chains.density,
        chains.blocks,
        num_chains,
        length.num_samples,
        store,
        num_groups,
        isinstance(chains.dynamics, WithMomentum),
    )
    adaptation = Adaptation(
        kernel.tuning(),
        chains,
        length.warmup_steps,
        least_curvature=least_curvature,
        num_groups=num_groups,
    )
    facts = {
        **told_by_the_call(kernel, density, length, num_chains, seed),
        "chain_method": "vectorized" if chains.density.vectorized else "sequential",
        "compile": chains.compile_mode,
    }
    bar = tqdm(
        total=length.num_steps, disable=not progress_bar, desc=description, unit="step", leave=False
    )
    watch = Watch(bar, chains, recorder, num_groups)
    sampling = Sampling(chains, adaptation, recorder, length, watch)
    with bar:
        if resume:
            assert store is not None
            report = sampling.go_on(store, facts)
        else:
            sampling.warm_up(center, least_curvature, seed)
            report = adaptation.report()
        started = time.perf_counter()  # set-up, compilation and warm-up are left out
        interrupted = sampling.draw(store, facts, report)
    sampling_time = time.perf_counter() - started
    failed = failures(chains, length.warmup_steps)
    stop_if_all_failed(failed, chains)
    known = {f"tuned_{name}": value for name, value in report.items()}
    facts |= {**known, "sampling_time": sampling_time}
    return Collected(recorder, failed, facts, interrupted)


def told_by_the_call(
    kernel: Kernel, density: Density, length: RunLength, num_chains: int, seed: int
) -> dict[str, Any]:
    """What is known of a run before it begins; equal for the call that resumes it."""
    return {
        "inference_library_version": __version__,
        **kernel.settings,
        **vars(length),
        "num_chains": num_chains,
        "num_data": density.num_data,
        "sites": {site.name: list(site.shape) for site in density.sites},
        "seed": seed,
    }


def check_chains(num_chains: int, chain_method: str) -> None:
    """Refuse a number of chains below one and an unknown way to run them."""
    if isinstance(num_chains, bool) or not isinstance(num_chains, int) or num_chains < 1:
        raise ValueError(f"num_chains must be a positive integer, got {num_chains!r}")
    methods = ("vectorized", "sequential", "parallel")
    if chain_method not in methods:
        raise ValueError(f"chain_method must be one of {methods}, got {chain_method!r}")
