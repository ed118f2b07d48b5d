"""The local free energy −log Z itself, by thermodynamic integration over a ladder of β."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ppl_fe.arguments import given, named_arguments, require_positive
from ppl_fe.data.sources import as_data
from ppl_fe.free_energy.chain_options import ChainOptions, Sampler
from ppl_fe.free_energy.ladders import Ladders
from ppl_fe.free_energy.local_chains import FreshHead
from ppl_fe.free_energy.neighbourhoods import best_neighbourhood
from ppl_fe.free_energy.thermodynamic_estimate import ThermodynamicEstimate
from ppl_fe.inference.adjusted import MALT
from ppl_fe.inference.run_plan import RunLength
from ppl_fe.inference.step.compile import CompileMode
from ppl_fe.models.likelihoods import Likelihood
from ppl_fe.networks.flat import FlatNetwork, require_network

STEPS = RunLength(num_samples=4000, warmup_steps=1000)
TRAJECTORIES = RunLength(num_samples=1000, warmup_steps=300)  # of MALT, each of several steps


@named_arguments
def integrate_free_energy(
    network: FlatNetwork,
    data: Any,
    *,
    num_rungs: int = 24,
    likelihood: str | Likelihood = ChainOptions.likelihood,
    localization: float | Literal["auto"] = ChainOptions.localization,
    head: str | None = None,
    head_precision: float = FreshHead.precision,
    inverse_temperature: float = 1.0,
    kernel: Sampler | Literal["auto"] = ChainOptions.kernel,
    step_size: float | Literal["auto"] = ChainOptions.step_size,
    tolerance: float = ChainOptions.tolerance,
    num_chains: int = 2,
    num_samples: int | None = None,
    warmup_steps: int | None = None,
    chain_method: Literal["vectorized", "sequential", "parallel"] = ChainOptions.chain_method,
    seed: int = ChainOptions.seed,
    save_to: str | Path | None = ChainOptions.save_to,
    resume: bool = ChainOptions.resume,
    progress_bar: bool = ChainOptions.progress_bar,
    compile: CompileMode = ChainOptions.compile,
) -> ThermodynamicEstimate:
    """Estimate the local free energy of a network's anchor by thermodynamic integration.

        F(β) = −log ∫ exp(−nβL_n(w)) N(w; w*, I/γ) dw = ∫₀^β E_b[nL_n] db,

    with E_b under exp(−nbL_n) N(w; w*, I/γ), so that F(0) = 0: the localiser is normalised. Rungs
    b_k = β(k/K)^5 run side by side as further chains. Between rungs the trapezoid is corrected by
    dE/db = −Var_b[nL_n]: ∫ ≈ Δ(E_k + E_{k+1})/2 + Δ²(V_{k+1} − V_k)/12 (Friel, Hurn & Wyse 2014).

    With downstream data and a fresh head, named by `head`, it is the downstream free energy: the
    head has its own prior N(0, 1/head_precision), and the backbone alone is localised.

    All data are used in every step and every draw is kept, since minibatches and thinning would
    inflate the variances: there is no batch_size and no thinning.

    Args:
        network: a `FlatNetwork`; its anchor is w*.
        data: as in `estimate_free_energy`.
        num_rungs: K, rungs above the prior's, 24 by default; the prior's own is drawn exactly.
        likelihood: as in `estimate_free_energy`, "categorical" by default.
        localization: γ, 1.0 by default; or "auto", by the data: −log Z at every γ is a log marginal
            likelihood, and the γ where it is largest is taken, on a grid of factors of √10 that
            goes on beyond its edge. That takes a ladder for each γ, four or more; the result says
            what was tried.
        head: the prefix of a fresh head's parameters, as "classifier"; None by default. What the
            network holds there does not matter.
        head_precision: τ of the head's prior, 1.0 by default, in units of 1/weight².
        inverse_temperature: β of the result, 1.0 by default: the free energy itself.
        kernel: the sampler's class; "auto" by default. That is `fe.MALT`, exact at any step, as
            long as neither a step nor a length is given, and otherwise `fe.BAOAB`.
        step_size: ε; "auto" by default.
        tolerance: as in `estimate_free_energy`, 0.02 by default.
        num_chains: chains a rung, 2 by default.
        num_samples: S, draws a chain, each a step or a trajectory of MALT; 1000 trajectories after
            300 by default, and 4000 steps after 1000 of other samplers.
        warmup_steps: those before the first draw.
        chain_method: as in `fe.sample`, "vectorized" by default.
        seed: 0 by default.
        save_to: new zarr folder for the draws; none by default.
        resume: go on with the run at `save_to`, begun by the same call, as in `fe.sample`; False by
            default.
        progress_bar: True by default.
        compile: as in `fe.sample`, "auto" by default.

    Raises:
        TypeError: a misspelt argument, before any work is done.
        ValueError: an odd number of rungs or fewer than four; `save_to` with localization="auto";
            as `estimate_free_energy`.
        DivergedError: a chain did not stay finite, or the chains of no γ have mixed.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> line = torch.nn.Linear(1, 1, bias=False)
        >>> found = integrate_free_energy(
        ...     FlatNetwork(line), (torch.ones(5, 1), torch.zeros(5)), likelihood="normal",
        ...     num_rungs=4, num_samples=100, progress_bar=False)
        >>> len(found.ladder)
        5
    """
    require_positive("inverse_temperature", inverse_temperature)
    if num_rungs < 4 or num_rungs % 2:
        raise ValueError(f"num_rungs must be even and at least 4, got {num_rungs}")
    require_network(network)
    if localization == "auto" and save_to is not None:
        raise ValueError("save_to keeps one run, localization='auto' makes several: give a number")
    asked = given(num_samples=num_samples, warmup_steps=warmup_steps)
    options = ChainOptions(
        likelihood=likelihood,
        localization=ChainOptions.localization if localization == "auto" else localization,
        inverse_temperature=inverse_temperature,  # each rung has its own; 1/log n needs n > 2
        kernel=kernel,
        step_size=step_size,
        tolerance=tolerance,
        batch_size=None,
        num_chains=num_chains,
        length=STEPS if asked else None,
        chain_method=chain_method,
        seed=seed,
        save_to=save_to,
        resume=resume,
        progress_bar=progress_bar,
        compile=compile,
    )
    source, fresh = as_data(data), FreshHead.named(head, head_precision)
    options = options.chosen(source)
    usual = TRAJECTORIES if options.kernel is MALT else STEPS
    options = replace(options, length=replace(usual, **asked))
    ladders = Ladders(network, source, options, num_rungs, fresh)
    if localization == "auto":
        chosen = best_neighbourhood(ladders, network.anchor[None])
        (found,) = chosen.found
        return ThermodynamicEstimate(*found, chosen.draws, chosen.best, chosen.tried)
    (found,), draws = ladders.climb(network.anchor[None])
    return ThermodynamicEstimate(*found, draws, float(localization))
