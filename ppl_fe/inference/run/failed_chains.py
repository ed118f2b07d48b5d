"""Chains that are no longer finite: which, since when, and what to do."""

from __future__ import annotations

import torch

from ppl_fe.diverged import DivergedError
from ppl_fe.inference.program.factorisations import NaNFactors
from ppl_fe.inference.step.chains import Chains
from ppl_fe.inference.warmup.curvature import largest_stable_step, stiffest


def failures(chains: Chains, warmup_steps: int) -> dict[int, str]:
    """Describe each chain that failed: when its gradient was first not finite, and in which blocks.

    The steps themselves keep the record, so that a look now and then misses nothing.

    Args:
        chains: of the run.
        warmup_steps: after which steps are counted from 0 again.

    Returns:
        Chain -> why it failed.
    """
    totals, names = chains.totals, list(chains.blocks)
    failed, found = torch.nonzero(totals.failed_at >= 0)[:, 0].tolist(), {}
    coarse = too_coarse(chains) if failed else ""
    for chain in failed:
        step = int(totals.failed_at[chain])
        when = f"warm-up step {step}" if step < warmup_steps else f"step {step - warmup_steps}"
        where = [names[k] for k in torch.nonzero(totals.failed_blocks[chain])[:, 0].tolist()]
        everywhere = len(where) == len(names)
        blocks = "every site" if everywhere and len(names) > 1 else ", ".join(where)
        found[chain] = f"the gradient of {blocks} was not finite at {when}{coarse}"
    return found


def too_coarse(chains: Chains) -> str:
    """Write a clause on float32 where the program factorises matrices in it; "" where not."""
    density = chains.density
    if density.dtype != torch.float32:
        return ""
    with torch.no_grad(), NaNFactors() as factors:
        density(chains.start[0])
    if not factors.met:
        return ""
    return (
        " (the program factorises a matrix, which rounding may leave without a factor: try "
        "torch.set_default_dtype(torch.float64), and data of that type)"
    )


def stop_if_all_failed(failed: dict[int, str], chains: Chains) -> None:
    """Stop the run when no chain is left.

    Args:
        failed: chain -> why it failed.
        chains: of the run.

    Raises:
        DivergedError: no chain is left; the message has the largest step that the start would have
            allowed.
    """
    if len(failed) < chains.num_chains:
        return
    used = chains.settings["step_size"].max().item()
    chains.start_at(chains.start)
    curvature = stiffest(chains).curvature
    largest = largest_stable_step(chains.dynamics, curvature, chains.settings).min().item()
    advice = "check the data and the starts"
    if curvature.isfinite().all() and largest < 0.999 * used:
        advice = (
            f"the largest curvature at the start, {curvature.max().item():.3g}, allows steps up to "
            f"{largest:.3g}: use a smaller step_size, or 'auto'"
        )
    elif curvature.isfinite().all():
        advice = (
            f"the start would allow a step of {largest:.3g}, so the chains met larger curvatures "
            "later: use a smaller step_size, or 'auto', and check the data"
        )
    raise DivergedError(
        f"every chain became non-finite at step size {used:.3g}: chain 0, {failed[0]}; {advice}",
        failed=failed,
    )
