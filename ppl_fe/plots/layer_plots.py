"""R-hat and temperature by layer: where in a network the chains have not converged, or run hot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ppl_fe.arguments import named_arguments
from ppl_fe.diagnostics.checks.mixing import R_HAT_LIMIT
from ppl_fe.diagnostics.error_bars import mean_and_error
from ppl_fe.diagnostics.run_data import open_draws, read_run
from ppl_fe.inference.program.density import merge_blocks
from ppl_fe.plots.palette import (
    BAND,
    COLOURS,
    NUM_ERRORS,
    height_of_rows,
    legend_beside,
    name_rows,
    one_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OVERALL = {
    "configurational_temperature": "all coordinates",
    "stiff_temperature": "stiffest direction",
    "kinetic_temperature": "momenta",
}


@named_arguments
def plot_r_hat_by_layer(draws: Any, *, group: int | None = None, axes: Axes | None = None) -> Axes:
    """Plot split R-hat of all coordinates, a row a layer: quartiles, 5 to 95 %, and the largest.

    The values are those of the draws' `moments`, one a coordinate, from running sums; the layers
    are the network's tensors in an estimate's draws, and the sites otherwise. Beyond 64,
    neighbours share a row. Of many coordinates some exceed 1.01 by chance: look at where the
    quartiles lie.

    Args:
        draws: of `fe.sample`, a path they were saved to, or an estimate.
        group: which target, where several were sampled side by side.
        axes: where to draw; by default a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: there is no R-hat, as of runs that are too short.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> import ppl_fe as fe
        >>> def model():
        ...     pyro.sample("w", dist.Normal(0.0, torch.ones(3)).to_event(1))
        ...     pyro.sample("v", dist.Normal(0.0, torch.ones(9)).to_event(1))
        >>> draws = fe.sample(fe.BAOAB(model), num_samples=100, progress_bar=False)
        >>> [label.get_text() for label in plot_r_hat_by_layer(draws).get_yticklabels()]
        ['w', 'v']
    """
    run = read_run(open_draws(draws), group)
    layers = {
        name: found
        for name, where in merge_blocks(run.layers).items()
        if len(found := run.r_hat[where][np.isfinite(run.r_hat[where])])
    }
    if not layers:
        raise ValueError("draws hold no R-hat of single coordinates; raise num_samples")
    axes = one_axes(axes, height_of_rows(len(layers)))
    rows = np.arange(len(layers))
    levels = [np.quantile(found, [0.05, 0.25, 0.5, 0.75, 0.95, 1.0]) for found in layers.values()]
    low, first, median, third, high, largest = np.transpose(levels)
    axes.hlines(rows, low, high, color=COLOURS[0], linewidth=1.2, label="5 to 95 %")
    axes.hlines(rows, first, third, color=COLOURS[0], linewidth=5, label="quartiles")
    axes.plot(
        median, rows, "o", color="white", markeredgecolor="black", markersize=5, label="median"
    )
    axes.plot(largest, rows, "x", color=COLOURS[5], markersize=6, label="largest")
    axes.axvline(R_HAT_LIMIT, color="black", linestyle="--", linewidth=1, label=str(R_HAT_LIMIT))
    axes.set_xlim(left=min(0.99, low.min()))
    if largest.max() > 2:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    name_rows(axes, list(layers))
    axes.set_xlabel("split R-hat of the coordinates")
    legend_beside(axes)
    return axes


@named_arguments
def plot_temperature_by_layer(
    draws: Any, *, group: int | None = None, axes: Axes | None = None
) -> Axes:
    """Plot the effective temperature of every layer, overall and along the stiffest direction.

    Configurational temperatures −⟨w − c, ∇log p⟩/D, means over chains and draws with two Monte
    Carlo standard errors either way, against the T of the target p^{1/T} and the tolerance in
    which the automatic step was chosen. The mean over all coordinates hardly sees the stiff
    directions, in which a step that is too large shows first. Samplers with momenta add |p|²/D.

    Args:
        draws: of `fe.sample`, a path they were saved to, or an estimate.
        group: which target, where several were sampled side by side.
        axes: where to draw; by default a new figure.

    Returns:
        The axes.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> import ppl_fe as fe
        >>> def model():
        ...     pyro.sample("w", dist.Normal(0.0, torch.ones(3)).to_event(1))
        >>> draws = fe.sample(fe.SGLD(model), num_samples=100, progress_bar=False)
        >>> [label.get_text() for label in plot_temperature_by_layer(draws).get_yticklabels()]
        ['all coordinates', 'stiffest direction']
    """
    run = read_run(open_draws(draws), group)
    layers = {}
    if "block_temperature" in run.stats:
        layers = dict(
            zip(run.blocks, np.moveaxis(run.stats["block_temperature"], -1, 0), strict=True)
        )
    overall = {label: run.stats[name] for name, label in OVERALL.items() if name in run.stats}
    axes = one_axes(axes, height_of_rows(len(layers) + len(overall)))
    tolerance = run.temperature * float(run.attrs.get("tolerance", 0.0))
    axes.axvspan(
        run.temperature - tolerance,
        run.temperature + tolerance,
        color=BAND,
        linewidth=0,
        label="tolerance",
    )
    axes.axvline(run.temperature, color="black", linewidth=1.2, label="target T")
    bars = f"± {NUM_ERRORS:.0f} MCSE"
    parts = [(layers, 0, 0, "o", "layer"), (overall, len(layers), 5, "D", "overall")]
    for traces, first, colour, marker, label in parts:
        if traces:
            found = np.array([mean_and_error(trace)[:2] for trace in traces.values()])
            axes.errorbar(
                found[:, 0],
                first + np.arange(len(traces)),
                xerr=NUM_ERRORS * found[:, 1],
                fmt=marker,
                color=COLOURS[colour],
                markersize=5,
                capsize=2,
                label=f"{label} {bars}",
            )
    name_rows(axes, [*layers, *overall])
    axes.locator_params(axis="x", nbins=6)
    axes.set_xlabel(f"effective temperature (target T = {run.temperature:g})")
    legend_beside(axes)
    return axes
