"""The pretraining WBIC and the local learning coefficient of one checkpoint, with error bars."""

from __future__ import annotations

from math import sqrt
from typing import Any, Unpack

import numpy as np
from arviz_stats.base import array_stats

from ppl_fe.diverged import DivergedError
from ppl_fe.free_energy.estimate import FreeEnergyEstimate
from ppl_fe.free_energy.local_chains import ChainOptions, LocalChains, sample_local_posteriors
from ppl_fe.networks.flat import FlatNetwork

R_HAT_LIMIT, ESS_LIMIT = 1.01, 400.0  # Vehtari et al. 2021
RELAXATIONS_TO_WARM_UP = 3.0


def estimate_free_energy(
    network: FlatNetwork,
    data: Any,
    *,
    check_half_step: bool = False,
    **options: Unpack[ChainOptions],
) -> FreeEnergyEstimate:
    """WBIC and local learning coefficient of a network's anchor w*, from data alone.

    Under p(w) ∝ exp(−nβL_n(w) − (γ/2)‖w − w*‖²), L_n the mean negative log-likelihood,

        WBIC = E[nL_n(w)],        λ̂ = nβ(E[L_n(w)] − L_n(w*)),

    so that at β = 1/log n, WBIC = nL_n(w*) + λ̂ log n (Watanabe 2013; Munn & Wei 2025,
    arXiv:2410.05612). With pretraining data it is the pretraining free energy; with downstream
    data, and a network that carries the downstream head, the same call gives the downstream one.
    Chains start overdispersed about w*, warm-up is left out, each chain draws its own minibatches.

    Args:
        network: a `FlatNetwork`; its anchor is w*.
        data: (inputs, targets), a mapping, a Dataset or a DataLoader; n is its length.
        check_half_step: run again at half the step; a note gives the λ̂ found there, and says so
            if it moved by more than 2 % and 3 standard errors.
        **options: of `sample_local_posteriors`:
            likelihood: "categorical" (default), "normal", "next_token" or a function.
            localization: γ = 1.0, the radius 1/√γ of the neighbourhood; the usual choice.
            inverse_temperature: β, default 1/log n.
            batch_size: 256; None uses all the data in every step.
            kernel: `fe.BAOAB` (default), `fe.SGLD`, ...; step_size: "auto" or ε.
            tolerance: 0.02, the largest predicted excess temperature of the stiffest direction.
            num_chains: 4; num_samples: 500 kept draws a chain, of thinning=10 steps each;
            warmup_steps: 1000.
            chain_method, seed, save_to, progress_bar, compile: as in `fe.sample`.

    Returns:
        A `FreeEnergyEstimate`. A checkpoint that is not at a minimum of the loss, or chains that
        have not mixed, still give a number; `notes` says so in words.

    Raises:
        ValueError: β, γ, ε not positive; labels out of range; NaN in weights or data.
        DivergedError: no chain stayed finite.

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
        ...     progress_bar=False)
        >>> abs(estimate.llc - 1.5) < 5 * estimate.llc_mcse + 0.05       # d/2, three weights
        True
    """
    chains = sample_local_posteriors(network, network.anchor[None], data, **options)
    estimate = summarize_group(chains, 0)
    if not check_half_step:
        return estimate
    half: ChainOptions = {**options, "step_size": estimate.step_size / 2, "save_to": None}
    halved = sample_local_posteriors(network, network.anchor[None], data, **half)
    finer = summarize_group(halved, 0)
    shift, error = finer.llc - estimate.llc, sqrt(finer.llc_mcse**2 + estimate.llc_mcse**2)
    estimate.draws.attrs["half_step_shift"] = [shift, error, estimate.llc]
    found = f"at half the step λ̂ = {finer.llc:.3f} ± {finer.llc_mcse:.3f}"
    if abs(shift) > max(3 * error, 0.02 * abs(estimate.llc)):
        found += (
            f", off by {shift:+.3f}: the step is too large, use step_size={finer.step_size:.3g}"
        )
    return FreeEnergyEstimate(**{**vars(estimate), "notes": (*estimate.notes, found)})


def summarize_group(chains: LocalChains, group: int) -> FreeEnergyEstimate:
    """The estimate of one anchor's chains among `LocalChains`.

    Raises:
        DivergedError: none of its chains stayed finite.
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
    llc, llc_mcse = n * beta * (mean - anchor_loss), n * beta * mcse
    notes = [
        *chains.notes,
        *_minimum_notes(loss, llc, llc_mcse, anchor_loss),
        *_mixing_notes(r_hat, ess, _of_group(attrs, "tuned_relaxation_steps", kept), attrs),
    ]
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
        n=n,
        inverse_temperature=beta,
        localization=float(attrs["localization"]),
        r_hat=r_hat,
        ess=ess,
        step_size=_of_group(attrs, "tuned_step_size", kept),
        notes=tuple(notes),
        draws=chains.draws,
    )


def loss_summary(loss: np.ndarray[Any, Any]) -> tuple[float, float, float, float]:
    """(C, S) -> mean, its MCSE, rank-normalised split R-hat, bulk ESS."""
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


def _mixing_notes(r_hat: float, ess: float, relaxation: float, attrs: Any) -> list[str]:
    notes = []
    if not (r_hat < R_HAT_LIMIT and ess > ESS_LIMIT):
        notes.append(
            f"not mixed: R-hat {r_hat:.3f} (below {R_HAT_LIMIT}), ESS {ess:.0f} (above "
            f"{ESS_LIMIT:.0f}); raise num_samples, thinning or warmup_steps, or localization"
        )
    warmup = attrs["warmup_steps"]
    if relaxation * RELAXATIONS_TO_WARM_UP > warmup:
        notes.append(
            f"short warm-up: {warmup} steps, and the slowest direction takes "
            f"{relaxation:.0f} to relax"
        )
    return notes
