"""The pretraining WBIC and the local learning coefficient of one checkpoint, with error bars."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite, sqrt
from pathlib import Path
from typing import Any, Literal

import numpy as np
from arviz_stats.base import array_stats

from ppl_fe.arguments import named_arguments
from ppl_fe.data.sources import as_data
from ppl_fe.diagnostics.checks.lengths import warmup_notes
from ppl_fe.diagnostics.checks.mixing import mixing_notes
from ppl_fe.diverged import DivergedError
from ppl_fe.free_energy.chain_options import ChainOptions, Sampler, length_of
from ppl_fe.free_energy.estimate import FreeEnergyEstimate
from ppl_fe.free_energy.local_chains import FreshHead, LocalChains, sample_local_posteriors
from ppl_fe.inference.step.compile import CompileMode
from ppl_fe.inference.targets import ESS_LIMIT, R_HAT_LIMIT
from ppl_fe.models.likelihoods import Likelihood
from ppl_fe.networks.flat import FlatNetwork, require_network


@named_arguments
def estimate_free_energy(
    network: FlatNetwork,
    data: Any,
    *,
    likelihood: str | Likelihood = ChainOptions.likelihood,
    localization: float = ChainOptions.localization,
    head: str | None = None,
    head_precision: float = FreshHead.precision,
    inverse_temperature: float | None = ChainOptions.inverse_temperature,
    batch_size: int | Literal["auto"] | None = ChainOptions.batch_size,
    kernel: Sampler | Literal["auto"] = ChainOptions.kernel,
    step_size: float | Literal["auto"] = ChainOptions.step_size,
    tolerance: float = ChainOptions.tolerance,
    num_chains: int = ChainOptions.num_chains,
    num_samples: int | None = None,
    warmup_steps: int | None = None,
    thinning: int | None = None,
    chain_method: Literal["vectorized", "sequential", "parallel"] = ChainOptions.chain_method,
    seed: int = ChainOptions.seed,
    save_to: str | Path | None = ChainOptions.save_to,
    resume: bool = ChainOptions.resume,
    progress_bar: bool = ChainOptions.progress_bar,
    compile: CompileMode = ChainOptions.compile,
    check_half_step: bool = False,
) -> FreeEnergyEstimate:
    """Estimate WBIC and local learning coefficient of a network's anchor w*, from data alone.

    Under p(w) ∝ exp(−nβL_n(w) − (γ/2)‖w − w*‖²), L_n the mean negative log-likelihood,

        WBIC = E[nL_n(w)],        λ̂ = nβ(E[L_n(w)] − L_n(w*)),

    so that at β = 1/log n, WBIC = nL_n(w*) + λ̂ log n (Watanabe 2013; Munn & Wei 2025,
    arXiv:2410.05612). With pretraining data it is the pretraining free energy; with downstream
    data, and a network that carries the downstream head, the same call gives the downstream one.
    A head that is fresh, with no pretrained value to stay near, is named by `head`: its prior is
    N(0, 1/head_precision), the backbone alone is localised, and w* has a head of zeros, so that λ̂
    counts from there and is no local learning coefficient.
    Chains start overdispersed about w*, warm-up is left out, each chain draws its own minibatches.

    Args:
        network: a `FlatNetwork`; its anchor is w*.
        data: (inputs, targets), a mapping, a Dataset or a DataLoader; n is its length.
        likelihood: "categorical" (default), "normal" (of sd 1), "next_token", or a function of
            (outputs, targets) that makes the observed site; with a noise of sd 0.3 its body is
            ``pyro.sample("y", dist.Normal(outputs[:, 0], 0.3), obs=targets)``.
        localization: γ, 1.0 by default, in units of 1/weight²: 1/√γ is the radius of the
            neighbourhood of w*. A larger one is narrower and sooner sampled; numbers compare at one
            γ alone.
        head: the prefix of a fresh head's parameters, as "classifier"; None by default. What the
            network holds there does not matter.
        head_precision: of the head's prior, 1.0 by default, in units of 1/weight²; without a head
            it says nothing.
        inverse_temperature: β; 1/log n by default.
        batch_size: examples a step; None for all the data. "auto" by default: all of them for
            `fe.MALT`, otherwise 256. A loader has its own.
        kernel: the sampler's class; "auto" by default. That is `fe.MALT`, exact at any step, for up
            to 2,560 examples or with batch_size=None, as long as the data are in memory and neither
            a step nor a length is given; otherwise `fe.BAOAB`.
        step_size: ε; "auto" by default, chosen in warm-up.
        tolerance: of samplers other than MALT, the largest predicted excess temperature of the
            stiffest direction, 0.02 by default; "auto" steps are as long as it allows.
        num_chains: 4 by default.
        num_samples: S, kept draws a chain. Without this and the next two the chains run until the
            loss has an R-hat of 1.01 and an ESS of 400, and for a standard error of λ̂ of 2 % up to
            four times as long; where one is given, the others are 500, 1000 and 10 by default.
        warmup_steps: steps before the first draw.
        thinning: steps a kept draw.
        chain_method: "vectorized" (default), "sequential" or "parallel", as in `fe.sample`.
        seed: 0 by default; equal seeds give equal draws.
        save_to: new zarr folder for the draws; none by default.
        resume: go on with the run at `save_to`, begun by the same call, as in `fe.sample`; False by
            default.
        progress_bar: True by default.
        compile: "auto" by default, as in `fe.sample`.
        check_half_step: run again at half the step, False by default; a note gives the λ̂ found
            there, and says so if it moved by more than 2 % and 3 standard errors.

    Returns:
        A `FreeEnergyEstimate`. A checkpoint that is not at a minimum of the loss, or chains that
        have not mixed, still give a number; `notes` says so in words.

    Raises:
        TypeError: a misspelt argument, before any work is done.
        ValueError: β, γ, ε not positive; labels out of range; NaN in weights or data.
        DivergedError: the loss of w* is not finite, or no chain stayed finite.

    Example:
        >>> import torch
        >>> from ppl_fe.networks import FlatNetwork
        >>> _ = torch.manual_seed(0)
        >>> inputs = torch.randn(200, 3)
        >>> module = torch.nn.Linear(3, 1, bias=False)
        >>> with torch.no_grad():
        ...     _ = module.weight.zero_()
        >>> estimate = estimate_free_energy(
        ...     FlatNetwork(module), (inputs, torch.zeros(200)), likelihood="normal",
        ...     num_samples=100, progress_bar=False)
        >>> abs(estimate.llc - 1.5) < 5 * estimate.llc_mcse + 0.05       # d/2, three weights
        True
    """
    require_network(network)
    fresh = FreshHead.named(head, head_precision)
    options = ChainOptions(
        likelihood=likelihood,
        localization=localization,
        inverse_temperature=inverse_temperature,
        batch_size=batch_size,
        kernel=kernel,
        step_size=step_size,
        tolerance=tolerance,
        num_chains=num_chains,
        length=length_of(num_samples, warmup_steps, thinning),
        chain_method=chain_method,
        seed=seed,
        save_to=save_to,
        resume=resume,
        progress_bar=progress_bar,
        compile=compile,
    )
    anchors = network.anchor[None]
    chains = sample_local_posteriors(network, anchors, data, options, head=fresh)
    estimate = summarize_group(chains, 0)
    if not check_half_step:
        return estimate
    options = options.chosen(as_data(data))  # of the same sampler
    half = replace(options, step_size=estimate.step_size / 2, save_to=None, resume=False)
    finer = summarize_group(sample_local_posteriors(network, anchors, data, half, head=fresh), 0)
    shift, error = finer.llc - estimate.llc, sqrt(finer.llc_mcse**2 + estimate.llc_mcse**2)
    estimate.draws.attrs["half_step_shift"] = [shift, error, estimate.llc]
    found = f"at half the step λ̂ = {finer.llc:.3f} ± {finer.llc_mcse:.3f}"
    if abs(shift) > max(3 * error, 0.02 * abs(estimate.llc)):
        found += (
            f", off by {shift:+.3f}: the step is too large, use step_size={finer.step_size:.3g}"
        )
    return replace(estimate, notes=(*estimate.notes, found))


def summarize_group(
    chains: LocalChains,
    group: int,
    *,
    r_hat_limit: float = R_HAT_LIMIT,
    ess_limit: float = ESS_LIMIT,
) -> FreeEnergyEstimate:
    """Estimate from the chains of one anchor among `LocalChains`.

    Args:
        chains: of all anchors.
        group: the number of the anchor, from 0.
        r_hat_limit: above which a note says that the chains have not mixed, 1.01 by default.
        ess_limit: below which it does, 400 by default.

    Raises:
        DivergedError: none of its chains stayed finite, or their mean loss is not.
    """
    stats = chains.draws.sample_stats
    per_group = len(chains.inverse_temperature) // chains.num_groups
    wanted = range(group * per_group, (group + 1) * per_group)
    kept = [chain for chain in stats.chain.values.tolist() if chain in wanted]
    if not kept:
        raise DivergedError(
            f"all {per_group} chains became non-finite; give a smaller step_size or a larger "
            "localization, and check the weights"
        )
    loss = stats.loss.sel(chain=kept).values.astype(np.float64)
    attrs = chains.draws.attrs
    n, beta = chains.num_data, float(chains.inverse_temperature[wanted[0]])
    anchor_loss = float(chains.anchor_loss[min(group, len(chains.anchor_loss) - 1)])
    mean, mcse, r_hat, ess = loss_summary(loss)
    if not isfinite(mean):
        raise DivergedError(
            f"the mean loss of the draws is {mean}; give a smaller step_size or a larger "
            "localization, and check the weights"
        )
    llc, llc_mcse = n * beta * (mean - anchor_loss), n * beta * mcse
    notes = [
        *chains.notes,
        *([] if chains.head else _minimum_notes(loss, llc, llc_mcse, anchor_loss)),
        *mixing_notes(r_hat, ess, r_hat_limit, ess_limit),
        *warmup_notes(attrs["warmup_steps"], _of_group(attrs, "tuned_relaxation_steps", kept)),
    ]
    if notes and attrs.get("target_missed"):
        notes.append(f"the run ended because {attrs['target_missed']}")
    lost = per_group - len(kept)
    if lost:
        notes.append(f"{lost} of {per_group} chains became non-finite and were left out")
    if attrs["interrupted"]:
        notes.append(f"interrupted after {loss.shape[1]} draws")
    return FreeEnergyEstimate(
        wbic=n * mean,
        wbic_mcse=n * mcse,
        llc=llc,
        llc_mcse=llc_mcse,
        anchor_loss=anchor_loss,
        num_data=n,
        inverse_temperature=beta,
        localization=float(attrs["localization"]),
        r_hat=r_hat,
        ess=ess,
        step_size=_of_group(attrs, "tuned_step_size", kept),
        notes=tuple(notes),
        draws=chains.draws,
    )


def loss_summary(loss: np.ndarray[Any, Any]) -> tuple[float, float, float, float]:
    """Summarise the loss (C, S): mean, its MCSE, rank-normalised split R-hat, bulk ESS."""
    if loss.shape[1] < 4:
        return float(loss.mean()), float("nan"), float("nan"), float("nan")
    axes = {"chain_axis": 0, "draw_axis": 1}
    return (
        float(loss.mean()),
        float(array_stats.mcse(loss, **axes, method="mean")),
        float(array_stats.rhat(loss, **axes, method="rank")),
        float(array_stats.ess(loss, **axes, method="bulk")),
    )


def _of_group(attrs: Any, name: str, chains: list[int]) -> float:
    values = attrs.get(name)
    return float("nan") if values is None else float(np.mean([values[c] for c in chains]))


def _minimum_notes(
    loss: np.ndarray[Any, Any], llc: float, llc_mcse: float, anchor_loss: float
) -> list[str]:
    if llc + 2 * llc_mcse < 0:
        return [
            f"off its minimum: the chains went below L(w*) = {anchor_loss:.4g} to "
            f"{loss.mean():.4g}, so λ̂ < 0 and WBIC is little more than n times the loss; "
            "train this checkpoint on, or raise localization"
        ]
    return []
