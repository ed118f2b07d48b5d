"""One run of a kernel on a density: warm up, draw, thin, watch for chains that fail."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from ppl_fe.data import LoaderData
from ppl_fe.inference.adaptation import Adaptation
from ppl_fe.inference.chains import Chains
from ppl_fe.inference.compile import CompileMode
from ppl_fe.inference.density import Density
from ppl_fe.inference.draws import Recorder
from ppl_fe.inference.initial import overdispersed_positions
from ppl_fe.inference.kernels import Kernel
from ppl_fe.inference.progress import Watch
from ppl_fe.inference.streams import stacked_batches
from ppl_fe.version import __version__

CHECK_EVERY = 50  # steps between looks for chains that are no longer finite, in warm-up


@dataclass(frozen=True)
class RunLength:
    """How long to run: S kept draws of `thinning` steps each, after `warmup_steps` steps."""

    num_samples: int = 1000
    warmup_steps: int = 500
    thinning: int = 1

    def __post_init__(self) -> None:
        for name, least in (("num_samples", 1), ("warmup_steps", 0), ("thinning", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")

    @property
    def num_steps(self) -> int:
        return self.warmup_steps + self.num_samples * self.thinning


def run(
    kernel: Kernel,
    density: Density,
    start: Tensor,
    length: RunLength,
    *,
    seed: int,
    save_to: str | Path | None = None,
    progress_bar: bool = True,
    compile: CompileMode = "auto",
    source: LoaderData | None = None,
    center: Tensor | None = None,
    least_curvature: float | None = None,
    num_groups: int = 1,
    attributes: Mapping[str, Any] | None = None,
    description: str = "",
) -> xr.DataTree:
    """`sample` on a density that is already built; what the estimators call.

    Args:
        start: (C, D) unconstrained starts; with `center` (C, D) given, chains start overdispersed
            about it instead (`overdispersed_positions`).
        least_curvature, num_groups: as in `Adaptation`.
    """
    recorder = Recorder(density, len(start), length.num_samples, save_to)
    chains = Chains(
        density,
        kernel.dynamics,
        kernel.estimator(density),
        start,
        kernel.initial_settings(density, len(start)),
        seed=seed,
        num_steps=length.num_steps,
        compile=compile,
        batches=None if source is None else stacked_batches(source, len(start), seed),
    )
    adaptation = Adaptation(
        kernel.tuning(),
        chains,
        length.warmup_steps,
        least_curvature=least_curvature,
        num_groups=num_groups,
    )
    if center is not None:
        adaptation.measure()
        chains.start_at(
            overdispersed_positions(
                chains, center, least_curvature or 1.0, adaptation.stiffest, seed
            )
        )
    failed: dict[int, str] = {}
    interrupted = False
    bar = tqdm(
        total=length.num_steps, disable=not progress_bar, desc=description, unit="step", leave=False
    )
    watch = Watch(bar, chains, recorder, num_groups)
    started = time.perf_counter()
    try:
        with bar:
            for step in range(length.warmup_steps):
                adaptation.before_step()
                statistics = chains.advance()
                watch.after_step("warm-up")
                if step % CHECK_EVERY == 0:
                    _note_failures(failed, statistics.log_density, f"warm-up step {step}", chains)
            chains.take_mean_loss(1)
            for draw in range(length.num_samples):
                for _ in range(length.thinning):
                    adaptation.before_step()
                    position = chains.state.position
                    statistics = chains.advance()
                    watch.after_step("sampling")
                # NaN stays, so a look now and then misses no chain; each look costs a wait.
                if draw % CHECK_EVERY == 0:
                    _note_failures(failed, statistics.log_density, f"draw {draw}", chains)
                loss = chains.take_mean_loss(length.thinning)
                step_size = chains.settings["step_size"][:, 0]
                recorder.add(position, statistics, loss, step_size)
    except KeyboardInterrupt:
        if recorder.num_draws == 0:
            raise
        interrupted = True
        warnings.warn(
            f"interrupted: {recorder.num_draws} of {length.num_samples} draws were kept",
            RuntimeWarning,
            stacklevel=3,
        )
    _note_failures(failed, statistics.log_density, f"draw {recorder.num_draws - 1}", chains)
    if failed:
        warnings.warn(
            "left out: " + "; ".join(f"chain {c}, {why}" for c, why in failed.items()),
            RuntimeWarning,
            stacklevel=3,
        )
    return recorder.finish(
        failed,
        {
            "inference_library": "ppl_fe",
            "inference_library_version": __version__,
            **kernel.describe(),
            **vars(length),
            "num_chains": len(start),
            "num_data": density.num_data,
            "seed": seed,
            "compile": chains.compile_mode,
            "interrupted": interrupted,
            "sampling_time": time.perf_counter() - started,
            "failed_chains": {str(chain): why for chain, why in failed.items()},
            **{f"tuned_{name}": value for name, value in adaptation.report().items()},
            **(attributes or {}),
        },
    )


def check_chains(num_chains: int, chain_method: str) -> None:
    """Refuse a number of chains below one and an unknown way to run them."""
    if isinstance(num_chains, bool) or not isinstance(num_chains, int) or num_chains < 1:
        raise ValueError(f"num_chains must be a positive integer, got {num_chains!r}")
    methods = ("vectorized", "sequential")
    if chain_method not in methods:
        raise ValueError(f"chain_method must be one of {methods}, got {chain_method!r}")


def _note_failures(failed: dict[int, str], log_density: Tensor, when: str, chains: Chains) -> None:
    finite = torch.isfinite(log_density)
    if bool(finite.all()):
        return
    for chain in torch.nonzero(~finite)[:, 0].tolist():
        failed.setdefault(chain, f"non-finite by {when}")
    if len(failed) == len(log_density):
        largest = chains.settings["step_size"].max().item()
        raise FloatingPointError(
            f"every chain became non-finite by {when} at step size {largest:.3g}; "
            "use a smaller step_size or 'auto', and check the data and the starts"
        )
