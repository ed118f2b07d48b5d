"""`sample`: from a kernel and a program's arguments to draws, in one call."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from math import ceil
from pathlib import Path
from typing import Any, Literal

import torch
import xarray as xr
from numpy import nanmax
from torch import Tensor
from torch.utils.data import DataLoader

from ppl_fe.arguments import given, refuse_foreign
from ppl_fe.data import LoaderData
from ppl_fe.inference.adjusted import MALT
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.program.potential import potential_arguments
from ppl_fe.inference.pyro_kernel import PyroKernel
from ppl_fe.inference.record.data_groups import data_groups
from ppl_fe.inference.run.conclusion import conclude
from ppl_fe.inference.run.one_run import run
from ppl_fe.inference.run_plan import ChainMethod, RunLength, RunPlan, Target
from ppl_fe.inference.samplers import BAOAB
from ppl_fe.inference.step.compile import CompileMode
from ppl_fe.inference.targets import Targets
from ppl_fe.inference.warmup.advice import RELAXATIONS_TO_WARM_UP, longer
from ppl_fe.tasks.n_jobs import check_engine, opened_workers


def sample(
    kernel: PyroKernel | Callable[..., Any],
    *args: Any,
    num_samples: int | None = None,
    warmup_steps: int | None = None,
    num_chains: int = 4,
    thinning: int | None = None,
    target_ess: float | None = None,
    target_r_hat: float | None = None,
    max_steps: int | None = None,
    max_seconds: float | None = None,
    chain_method: Literal["vectorized", "sequential", "parallel"] = "vectorized",
    initial_params: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    executor: Executor | None = None,
    n_jobs: int | None = None,
    save_to: str | Path | None = None,
    resume: bool = False,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    progress_bar: bool = True,
    compile: CompileMode = "auto",
    **kwargs: Any,
) -> xr.DataTree:
    """Draw from a Pyro program's posterior until the draws are an answer.

    All chains advance in one vectorised step, each with its own minibatches and start; the step is
    traced to a graph, and compiled when the run is long enough to pay for it.

    Without lengths, or with a target, the warm-up ends when step size, metric and positions have
    settled, and the run when every named scalar (the sites of up to 500 values, and the loss) has
    the effective sample size and R-hat asked for. Where `num_samples` draws are not enough, every
    second one goes and `thinning` doubles, so that memory stays what it was. With lengths and no
    target they are what is run.

    Args:
        kernel: a Pyro program, whose sampler is then chosen: `fe.MALT` where gradients are exact,
            `fe.BAOAB` where plates subsample or a loader gives minibatches; or a sampler,
            `fe.BAOAB(model, ...)`.
        *args: the program's arguments: tensors, NumPy arrays, data frames, or anything else that it
            takes. Arrays become tensors where it needs them: floats in the precision of its sites,
            whole numbers as int64; a data frame's columns go by name, as tensors, and a category of
            text is its codes. A single `DataLoader` stands for data larger than memory: the program
            is called with its minibatches (inputs, targets), reshuffled for each chain. They may
            differ in shape, as batches that are padded each to its own length.
        num_samples: S, kept draws a chain, 1000 by default; with a target the most that are kept.
        warmup_steps: steps before the first kept draw, in which "auto" settings are tuned: 500 by
            default, and with a target as many as it takes.
        num_chains: C. Default 4.
        thinning: steps a kept draw costs, 1 by default, and with a target as many as it takes.
            `sample_stats.loss` averages over all of them. A step of `fe.MALT` is a trajectory.
        target_ess: bulk and tail effective sample size of every named scalar. Default 400, where
            no length is given; with lengths there is no target unless one is given.
        target_r_hat: likewise, of rank-normalised split R-hat. Default 1.01.
        max_steps: gradients a chain, warm-up included, that a run with targets takes at most.
            Default 50,000. It ends earlier where they would not be enough.
        max_seconds: of warm-up and draws, likewise. Default none; with a clock no seed gives the
            same draws twice.
        chain_method: "vectorized" (default); "sequential" for programs that cannot be batched over
            chains, as those whose control flow depends on latent values; "parallel" for one process
            a chain, as many at once as there are cores, which need a run of given length.
        initial_params: site -> unconstrained values (C, ...), as in `pyro.infer.MCMC`. By default
            uniform on (−2, 2), and where plates subsample about the modes that L-BFGS finds from
            there (`about_modes`): a minibatch chain's small steps would take long to come so far.
        seed: of noise, minibatches and starts, default 0; equal seeds give equal draws on the same
            machine.
        executor: where chains run, each as a task, as with chain_method="parallel" and with the
            same draws: any `concurrent.futures.Executor`, as Dask's `client.get_executor()`.
            Default none.
        n_jobs: in its place, processes of this machine: −1 for one a core. Default none.
        save_to: a new zarr folder, written as draws come and locked until the run ends; of chains
            that run by themselves each writes its own part of it. Default none.
        resume: go on with the unfinished run at `save_to`, begun by the same call; the draws are
            those of an uninterrupted run, and those of a complete run are read. At most five
            seconds of draws are made again, and ten times what writing them takes. A run of other
            settings, data or program is refused, and so is one that was damaged. Default False.
        coords: dimension -> a label for each of its entries, as in ArviZ and PyMC. Default none.
        dims: site -> names of its dimensions, chain and draw apart. By default a dimension bears
            the name of the plate that it belongs to, and others are called `{site}_dim_0` and so
            on. Arguments that are kept in `constant_data` go by the program's parameters.
        progress_bar: show steps, loss, step size and the loss's split R-hat. Default True.
        compile: "auto" (default) compiles the step when the run is long enough, or on its way when
            it turns out to be; "compiled", "traced" and "eager" force one way. Without a C++
            compiler "compiled" means "traced", with one warning.
        **kwargs: the program's keyword arguments.

    Returns:
        An `xarray.DataTree` in ArviZ's schema, with dimensions (chain, draw, ...) and all settings
        as attributes. The group `posterior` has the sites on their support, and those of
        `pyro.deterministic` that lie outside of subsampled plates. `sample_stats` has `lp`, the
        log-density on unconstrained space as estimated from the minibatch; `loss`, minus the
        minibatch log-likelihood per datum in nats, averaged over the draw's steps;
        `gradient_norm`; `step_size`; and temperatures. `moments` has mean, standard deviation,
        R-hat and ESS of every unconstrained coordinate. `observed_data` and `constant_data` have
        the data, up to 10⁷ values; a loader's are not kept.
        A chain that became non-finite is left out and named in the attribute `failed_chains`.
        The attribute `chain_method` is the way the chains did run: a program that cannot be batched
        runs them one after another, after a RuntimeWarning that names what is in the way.
        With automatic settings `tuned_excess_temperature` is the excess predicted along the
        stiffest direction, and `tuned_measured_temperature` what the kept draws had, (C,) each.

    Raises:
        TypeError: `kernel` is no sampler, or neither this function nor the program has a keyword;
            with an executor, a program that cannot be pickled.
        ValueError: a program that cannot be sampled (see `Density`), settings out of range, a run
            to be resumed that another call began or that is damaged.
        BlockingIOError: another process writes to `save_to`.
        FileExistsError: the folder `save_to` exists.
        FileNotFoundError: there is nothing to resume.
        OSError: `save_to` cannot be written to, or the disk is full; the message says what is kept.
        DivergedError: no chain stayed finite, or a step size given by hand is beyond the largest
            stable one, which the message names.

    Warns:
        RuntimeWarning: a target that was missed; a warm-up shorter than five relaxation times of
            the slowest direction; a chain that was left out; a program that cannot be batched over
            chains; or a loader whose batches differ in shape.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> import ppl_fe as fe
        >>> def model(y):
        ...     scale = pyro.sample("scale", dist.HalfNormal(1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(0.0, scale), obs=y)
        >>> y = torch.linspace(-1, 1, 50)
        >>> draws = fe.sample(model, y, progress_bar=False)
        >>> dict(draws.posterior.sizes), fe.diagnose(draws).passed
        ({'chain': 4, 'draw': 1000}, True)
    """
    if not callable(kernel) and not isinstance(kernel, PyroKernel):
        raise TypeError(
            "kernel must be a Pyro program or one of the samplers, as in fe.BAOAB(model), got "
            f"{type(kernel).__name__}"
        )
    program = kernel.program if isinstance(kernel, PyroKernel) else kernel
    known = inspect.signature(sample).parameters.keys() - {"args", "kwargs"}
    refuse_foreign("sample", program, kwargs.keys(), known)
    lengths = given(num_samples=num_samples, warmup_steps=warmup_steps, thinning=thinning)
    targets: dict[str, Any] = given(
        ess=target_ess, r_hat=target_r_hat, max_steps=max_steps, max_seconds=max_seconds
    )
    chain_method = _method(chain_method, executor, n_jobs)
    whole = chain_method == "parallel"  # such a run has a length
    until = Targets(**targets) if targets or not (lengths or whole) else None
    plan = RunPlan(
        RunLength(**lengths),
        until=until,
        num_chains=num_chains,
        seed=seed,
        chain_method=chain_method,
        compile=compile,
        save_to=save_to,
        resume=resume,
        progress=progress_bar,
    )
    source, args = _loader_of(args)
    by_potential = isinstance(kernel, PyroKernel) and kernel.potential_fn is not None
    if by_potential:
        first = initial_params and {k: torch.as_tensor(v)[0] for k, v in initial_params.items()}
        args = potential_arguments(args, first)
    density = Density(
        program,
        args,
        kwargs,
        data_per_chain=source is not None,
        vectorized=chain_method != "sequential",
    )
    density.label(dims, coords)
    start = None if initial_params is None else _start(density, initial_params, num_chains)
    sampler = kernel if isinstance(kernel, PyroKernel) else _chosen(program, density)
    labels = {} if dims is None else {"dims": {name: [*density.labels.dims[name]] for name in dims}}
    data = {} if by_potential else data_groups(density)
    with opened_workers(executor, n_jobs) as workers:
        draws = run(sampler, Target(density, source, start), plan, labels, data, workers)
    if until is None:
        _warn_short_warm_up(draws.attrs)
    else:
        conclude(draws, density, progress_bar)
    return draws


def _method(method: ChainMethod, executor: Executor | None, n_jobs: int | None) -> ChainMethod:
    """Give the way chains run: where somebody takes them as tasks, each by itself.

    Raises:
        TypeError, ValueError: no executor, or two.
    """
    check_engine(executor, n_jobs)
    if executor is None and n_jobs is None:
        return method
    if method == "sequential":
        raise ValueError(
            "chain_method='sequential' runs chains one after another, an executor each as a task; "
            "leave one out, or give n_jobs=1"
        )
    return "parallel"


def _start(density: Density, values: Mapping[str, Tensor], num_chains: int) -> Tensor:
    """Make positions (C, D) of the values that were given.

    Raises:
        ValueError: of another number of chains, sites or shapes.
    """
    start = density.join(values)
    if len(start) != num_chains:
        raise ValueError(f"initial_params holds {len(start)} chains, num_chains is {num_chains}")
    return start


def _loader_of(args: tuple[Any, ...]) -> tuple[LoaderData | None, tuple[Any, ...]]:
    """Take a loader that stands for the data, and its first minibatch as the arguments."""
    if len(args) != 1 or not isinstance(args[0], DataLoader | LoaderData):
        return None, args
    source = args[0] if isinstance(args[0], LoaderData) else LoaderData(args[0])
    return source, source.first()


def _chosen(program: Callable[..., Any], density: Density) -> PyroKernel:
    """Choose a sampler for a program that was given without one."""
    if density.data_per_chain:
        return BAOAB(program)
    return BAOAB(program, gradient="auto") if density.subsamples else MALT(program)


def _warn_short_warm_up(attributes: Mapping[Any, Any]) -> None:
    """Warn of a warm-up too short for the chains to forget their starts, and of what would help."""
    if attributes["step_size"] != "auto" or "tuned_relaxation_steps" not in attributes:
        return
    slowest = nanmax(attributes["tuned_relaxation_steps"])
    wanted = ceil(RELAXATIONS_TO_WARM_UP * slowest)
    if attributes["warmup_steps"] < wanted:
        warnings.warn(
            f"warmup_steps={attributes['warmup_steps']} is shorter than five relaxation times of "
            f"the slowest direction ({slowest:.0f} steps each); "
            + longer("warmup_steps", wanted, attributes),
            RuntimeWarning,
            stacklevel=3,
        )
