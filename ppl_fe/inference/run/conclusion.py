"""The line that stays at the end of a run: what it took, and whether to trust it."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ppl_fe.inference.program.density import Density
from ppl_fe.inference.warmup.other_modes import unvisited

MOST_DIVERGING = 1e-4  # of trajectories; where the short steps fit everywhere there are none


def conclude(draws: xr.DataTree, density: Density, show: bool) -> None:
    """Say what a run until its targets came to, and warn where it fell short.

    Args:
        draws: of the run; the numbers are in their attributes.
        density: of the program.
        show: the line, on the terminal or in the notebook. The warning comes in any case.

    Warns:
        RuntimeWarning: a target was missed; with what to do.
    """
    attrs = draws.attrs
    if show:
        tqdm.write(_line(attrs), file=sys.stderr)
    if attrs["target_missed"] and not attrs["interrupted"]:
        warnings.warn(
            f"not an answer yet: {_worst(attrs)}; {attrs['target_missed']}. "
            + _advice(attrs, density),
            RuntimeWarning,
            stacklevel=3,
        )
    stats = draws["sample_stats"].to_dataset()
    if "diverging" in stats:
        share = share_lost(stats["diverging"].values, attrs)
        if not attrs["target_missed"] and share >= MOST_DIVERGING:
            warnings.warn(f"doubtful: {too_long(share, density)}", RuntimeWarning, stacklevel=3)
    missing = json.loads(attrs.get("unvisited_modes", "{}"))
    if missing:
        warnings.warn(f"not an answer: {unvisited(missing)}", RuntimeWarning, stacklevel=3)


def share_lost(diverging: NDArray[Any], attrs: Mapping[Any, Any]) -> float:
    """Compute the share of trajectories whose energy was lost, of draws (C, S) of several each."""
    return float(np.mean(diverging)) / int(attrs["thinning"])


def too_long(share: float, density: Density | None = None) -> str:
    """Say that a share of the trajectories was lost, and what to do.

    Example:
        >>> too_long(0.001)[:75]
        '0.1 % of the trajectories lost their energy, as in a neck that is too narro'
    """
    return (
        f"{100 * share:.3g} % of the trajectories lost their energy, as in a neck that is too "
        "narrow for the shortest step, and what lies there may be missing: give "
        "fe.MALT(model, target_acceptance=0.95), or another parametrisation. "
        + (_funnel(density) if density is not None else "")
    ).strip()


def _line(attrs: Mapping[Any, Any]) -> str:
    verdict = "targets missed" if attrs["target_missed"] else "targets reached"
    return (
        f"{attrs['sampler']}: {attrs['num_chains']} chains of {attrs['num_samples']} draws, "
        f"{attrs['num_gradients']} gradients each, {attrs['seconds']:.1f} s with warm-up; "
        f"{_worst(attrs)}: {verdict}"
    )


def _worst(attrs: Mapping[Any, Any]) -> str:
    return (
        f"worst R-hat {attrs['worst_r_hat']:.3f} ({attrs['worst_r_hat_of']}), "
        f"worst ESS {attrs['worst_ess']:.0f} ({attrs['worst_ess_of']})"
    )


def _advice(attrs: Mapping[Any, Any], density: Density) -> str:
    """Name the reparametrisation that a funnel wants, or else what is left to try."""
    funnel = _funnel(density)
    if funnel:
        return funnel
    site = attrs["worst_ess_of"].split("[")[0]
    return (
        f"{site!r} is where it is slowest: its posterior has separate modes, a heavy tail, or a "
        "scale that others narrow and widen with; give such a site a lighter-tailed prior or "
        "another parametrisation, or raise max_steps"
    )


def _funnel(density: Density) -> str:
    """Name the sites whose scale is latent, if there are any, and what to write instead."""
    centred = density.centred_sites()
    if not centred:
        return ""
    names = " and ".join(map(repr, centred))
    return (
        f"The scale of {names} is latent, which makes a funnel: write x = loc + scale * z with "
        "z ~ Normal(0, 1), or wrap the program in pyro.poutine.reparam with LocScaleReparam(0)"
    )
