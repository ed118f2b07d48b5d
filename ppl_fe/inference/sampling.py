"""`sample`: warm up, draw, thin, show progress; everything a run needs in one call."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from ppl_fe.version import __version__
from ppl_fe.inference.adaptation import Adaptation
from ppl_fe.inference.chains import Chains
from ppl_fe.inference.compile import CompileMode
from ppl_fe.inference.density import Density
from ppl_fe.inference.draws import Recorder
from ppl_fe.inference.initial import overdispersed_positions, uniform_positions
from ppl_fe.inference.kernels import Kernel
from ppl_fe.inference.moments import split_r_hat
from ppl_fe.inference.streams import BatchSource, stacked_batches

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


def sample(
    kernel: Kernel,
    *args: Any,
    num_samples: int = 1000,
    warmup_steps: int = 500,
    num_chains: int = 4,
    thinning: int = 1,
    chain_method: Literal["vectorized", "sequential"] = "vectorized",
    initial_params: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    save_to: str | Path | None = None,
    progress_bar: bool = True,
    compile: CompileMode = "auto",
    **kwargs: Any,
) -> xr.DataTree:
    """Draw from a Pyro program's posterior with a stochastic-gradient kernel.

    All chains advance in one vectorised step, each with its own minibatches and start; the step is
    traced to a graph, and compiled when the run is long enough to pay for it.

    Args:
        kernel: `fe.SGLD(model, ...)` or another of the family.
        *args, **kwargs: the program's arguments. A single `BatchSource` (from
            `fe.networks.as_data(loader)`) stands for data larger than memory: the program is
            called with its minibatches.
        num_samples: S, kept draws a chain.
        warmup_steps: steps before the first kept draw, in which "auto" settings are tuned.
        num_chains: C.
        thinning: steps a kept draw costs. `sample_stats.loss` averages over all of them.
        chain_method: "vectorized", or "sequential" for programs whose control flow depends on
            latent values.
        initial_params: site -> unconstrained values (C, ...), as in `pyro.infer.MCMC`; by default
            uniform on (−2, 2).
        seed: equal seeds give equal draws on the same machine.
        save_to: a new zarr folder, written as draws come.
        progress_bar: show steps, loss, step size and the loss's split R-hat.
        compile: "auto"; "compiled", "traced" and "eager" force one. Without a C++ compiler
            "compiled" means "traced", with one warning.

    Returns:
        `xarray.DataTree` in ArviZ's schema, dimensions (chain, draw, ...): `posterior` (sites on
        their support) and `sample_stats` (`lp`, the log-density on unconstrained space as
        estimated from the minibatch; `loss`, minus the minibatch log-likelihood per datum,
        averaged over the draw's steps; `gradient_norm`; `step_size`); all settings as attributes.
        A chain that became non-finite is left out and named in the attribute `failed_chains`.

    Raises:
        ValueError: a program that cannot be sampled (see `Density`), settings out of range.
        FileExistsError: `save_to` exists.
        FloatingPointError: no chain stayed finite.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> import ppl_fe as fe
        >>> def model(y):
        ...     scale = pyro.sample("scale", dist.HalfNormal(1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(0.0, scale), obs=y)
        >>> y = torch.linspace(-1, 1, 50)
        >>> draws = fe.sample(fe.BAOAB(model), y, num_samples=200, progress_bar=False)
        >>> dict(draws.posterior.sizes)
        {'chain': 4, 'draw': 200}
    """
    length = RunLength(num_samples, warmup_steps, thinning)
    _check_chains(num_chains, chain_method)
    source: BatchSource | None = None
    if len(args) == 1 and hasattr(args[0], "replicas"):
        source = args[0]
        args = tuple(source.first())
    density = Density(
        kernel.model,
        args,
        kwargs,
        data_per_chain=source is not None,
        vectorized=chain_method == "vectorized",
    )
    if initial_params is None:
        start = uniform_positions(density, num_chains, seed)
    else:
        start = density.join(initial_params)
        if len(start) != num_chains:
            raise ValueError(
                f"initial_params holds {len(start)} chains, num_chains is {num_chains}"
            )
    return run(
        kernel,
        density,
        start,
        length,
        seed=seed,
        save_to=save_to,
        progress_bar=progress_bar,
        compile=compile,
        source=source,
        attributes={"chain_method": chain_method},
    )


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
    source: BatchSource | None = None,
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
        kernel,
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
    watch = _Watch(bar, chains, recorder)
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


class _Watch:
    """Feeds the progress bar; looks at the clock rather than at every step's numbers."""

    def __init__(self, bar: Any, chains: Chains, recorder: Recorder, seconds: float = 0.5) -> None:
        self.bar, self.chains, self.recorder, self.seconds = bar, chains, recorder, seconds
        self.pending, self.last = 0, time.perf_counter()

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
            shown["R-hat of loss"] = f"{split_r_hat(losses).item():.3f}"
        self.bar.set_postfix({"phase": phase, **shown}, refresh=False)
        self.pending, self.last = 0, now


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


def _check_chains(num_chains: int, chain_method: str) -> None:
    if isinstance(num_chains, bool) or not isinstance(num_chains, int) or num_chains < 1:
        raise ValueError(f"num_chains must be a positive integer, got {num_chains!r}")
    methods: Sequence[str] = ("vectorized", "sequential")
    if chain_method not in methods:
        raise ValueError(f"chain_method must be one of {methods}, got {chain_method!r}")
