"""Rank plots: do all chains draw from one law?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from arviz_stats.base import array_stats
from numpy.typing import NDArray
from scipy.stats import rankdata

from ppl_fe.arguments import did_you_mean, named_arguments
from ppl_fe.diagnostics.error_bars import AXES
from ppl_fe.diagnostics.run_data import open_draws, read_run
from ppl_fe.networks.matching import listed
from ppl_fe.plots.palette import BAND, COLOURS, LINE_STYLES, bare, new_figure

Array = NDArray[np.float64]

MOST_PICTURES, COLUMNS = 9, 3
GRID = np.linspace(0.0, 1.0, 101)
BAND_PROBABILITY = 0.95
NUM_SIMULATIONS, SIMULATED_DRAWS = 1000, 200


@named_arguments
def plot_ranks(
    draws: Any, names: Sequence[str] | None = None, *, group: int | None = None
) -> NDArray[Any]:
    """Plot each chain's ranks among all draws: their distribution's difference from uniform.

    With u the ranks of a chain's draws among those of all C chains, scaled to (0, 1], a line is
    F(u) − u with F the chain's own distribution function (Säilynoja, Bürkner & Vehtari 2022).
    Chains of one law stay in the grey band in 95 % of pictures, all chains and ranks at once. A
    chain that lies too high above zero throughout has too many small values; one that is too wide
    rises above zero at the left and falls below it at the right. The band counts as many draws as
    the autocorrelation within the chains leaves independent, which ArviZ's own does not.

    Args:
        draws: of `fe.sample`, a path they were saved to, or an estimate.
        names: "loss" or entries of sites ("slope[0]"); default the loss and the first eight
            values of small sites.
        group: which target, where several were sampled side by side.

    Returns:
        (K,) axes, one a name, in a new figure.

    Raises:
        ValueError: an unknown name, one chain only, or a value that never moves.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> import ppl_fe as fe
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> draws = fe.sample(fe.BAOAB(model), torch.ones(9), num_samples=100, progress_bar=False)
        >>> [axes.get_title() for axes in plot_ranks(draws)]
        ['loss', 'mean']
    """
    run = read_run(open_draws(draws), group)
    known = {"loss": run.loss, **run.named, **run.sampled}
    moving = [name for name, traces in run.named.items() if np.ptp(traces) > 0]
    chosen = moving[:MOST_PICTURES] if names is None else list(names)
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        near = did_you_mean(unknown[0], known) if unknown else ""
        raise ValueError(f"names={unknown}: {near or f'there are {listed(list(known))}'}")
    if len(run.chains) < 2:
        raise ValueError("one chain only: ranks compare chains; raise num_chains")
    columns = min(COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = new_figure(0.6 + 2.2 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    every: NDArray[Any] = grid.ravel()[: len(chosen)]
    for unused in grid.ravel()[len(chosen) :]:
        unused.remove()
    for place, (axes, name) in enumerate(zip(every, chosen, strict=True)):
        bare(axes)
        half = band_half_width(known[name], name)
        axes.axhspan(-half, half, color=BAND, linewidth=0, label="95 % of one law")
        for number, line in enumerate(rank_differences(known[name])):
            axes.plot(
                GRID,
                line,
                color=COLOURS[number % len(COLOURS)],
                linestyle=LINE_STYLES[number % len(LINE_STYLES)],
                label=f"chain {run.chains[number]}",
            )
        axes.set_title(name, fontsize="medium")
        if place + columns >= len(chosen):
            axes.set_xlabel("fractional rank u")
            axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
            axes.tick_params(labelbottom=True)
        if place % columns == 0:
            axes.set_ylabel("F(u) − u")
    handles, labels = every[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    return every


def rank_differences(traces: Array) -> Array:
    """Compute F_c(u) − u at u = 0, 0.01, ... 1, (C, 101), of traces (C, S) ranked together."""
    ranks = np.sort(rankdata(traces).reshape(traces.shape) / traces.size, axis=1)
    below = [np.searchsorted(own, GRID + 1e-12, side="right") for own in ranks]
    return np.asarray(np.asarray(below) / traces.shape[1] - GRID)


def band_half_width(traces: Array, name: str) -> float:
    """Compute what the largest |F_c(u) − u| of C chains of one law exceeds in 5 % of cases.

    Raises:
        ValueError: no chain moves.
    """
    # Of each chain by itself: a chain that is elsewhere lowers the joint effective sample size,
    # and would widen the very band that is to show it.
    moving = [trace for trace in traces if np.ptp(trace) > 0]
    if not moving:
        raise ValueError(f"{name!r} never moves: it has no ranks")
    each = [float(array_stats.ess(trace[None], **AXES, method="bulk")) for trace in moving]
    independent = float(np.clip(np.mean(each), 1.0, traces.shape[1]))
    # The half-width goes as one over the root of the draws.
    return _simulated(len(traces)) * float(np.sqrt(SIMULATED_DRAWS / independent))


@lru_cache
def _simulated(num_chains: int) -> float:
    """Simulate the 95 % quantile over chains of 200 independent draws."""
    generator = np.random.default_rng(0)
    shape = (num_chains, SIMULATED_DRAWS)
    largest = [
        np.abs(rank_differences(generator.standard_normal(shape))).max()
        for _ in range(NUM_SIMULATIONS)
    ]
    return float(np.quantile(largest, BAND_PROBABILITY))
