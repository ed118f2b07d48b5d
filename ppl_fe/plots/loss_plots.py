"""The loss along the chains: has it levelled off, and above the loss at the minimum?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ppl_fe.arguments import named_arguments
from ppl_fe.diagnostics.checks.mixing import trace_believed
from ppl_fe.diagnostics.error_bars import mean_and_error
from ppl_fe.diagnostics.run_data import open_draws
from ppl_fe.plots.palette import COLOURS, NUM_ERRORS, legend_beside, one_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_NAMED = 8  # chains in the legend


@named_arguments
def plot_loss_traces(
    draws: Any,
    anchor_loss: float | None = None,
    *,
    chains: Sequence[int] | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Plot the loss of every chain against the draw, with L_n(w*) and the plateau.

    The plateau is the mean over chains and draws; the band is two of its Monte Carlo standard
    errors either way. Chains that have not mixed have no plateau and no band: the line is then
    called their mean. A healthy trace levels off above L_n(w*) after the warm-up (which is not
    stored); one that goes below it, or still falls, says that its λ̂ is not to be believed.

    Args:
        draws: of `fe.sample`, a path they were saved to, or an estimate.
        anchor_loss: L_n(w*) in nats an example, drawn as a dashed line; by default what an
            estimate of one checkpoint wrote into its draws.
        chains: which to draw; default all. Of several checkpoints or rungs sampled side by side
            give those of one, for they have different plateaus.
        axes: where to draw; by default a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: a chain that does not exist; several targets without `chains`; fewer than four
            draws.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> import ppl_fe as fe
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> draws = fe.sample(fe.BAOAB(model), torch.ones(9), num_samples=100, progress_bar=False)
        >>> axes = plot_loss_traces(draws)
        >>> axes.get_ylabel()
        'loss L (nats an example)'
    """
    tree = open_draws(draws)
    if anchor_loss is None and isinstance(tree.attrs.get("anchor_loss"), float):
        anchor_loss = tree.attrs["anchor_loss"]  # of several checkpoints it is a list
    loss = tree["sample_stats"].to_dataset()["loss"]
    known = [int(chain) for chain in loss["chain"].values]
    groups = int(tree.attrs.get("num_groups", 1))
    if chains is None and groups > 1:
        raise ValueError(
            f"these draws hold {groups} targets side by side, each with its own plateau; "
            f"give chains={list(range(int(tree.attrs['num_chains']) // groups))} for the first"
        )
    chosen = known if chains is None else list(chains)
    if not chosen or not set(chosen) <= set(known):
        raise ValueError(f"chains={chosen}: there are chains {known}")
    traces = np.asarray(loss.sel(chain=chosen).values, dtype=np.float64)
    if traces.shape[1] < 4:
        raise ValueError(f"{traces.shape[1]} draws a chain have no plateau; raise num_samples")
    axes = one_axes(axes)
    for number, (chain, trace) in enumerate(zip(chosen, traces, strict=True)):
        label = f"chain {chain}" if len(chosen) <= MOST_NAMED else None
        colour = COLOURS[number % (len(COLOURS) - 1)]  # black is for the lines across
        axes.plot(trace, color=colour, linewidth=0.6, alpha=0.8, label=label)
    mean, error, _ = mean_and_error(traces)
    if trace_believed(traces):
        _draw_plateau(axes, mean, NUM_ERRORS * error)
    else:
        axes.axhline(mean, color="black", linewidth=1.2, zorder=4, label="mean, not mixed")
    if anchor_loss is not None:
        axes.axhline(anchor_loss, color="black", linewidth=1.4, linestyle="--", label="$L_n(w^*)$")
    thinning = int(tree.attrs.get("thinning", 1))
    axes.set_xlabel("draw" if thinning == 1 else f"draw ({thinning} steps each)")
    axes.set_ylabel("loss L (nats an example)")
    axes.set_xlim(0, traces.shape[1] - 1)
    legend_beside(axes)
    return axes


def _draw_plateau(axes: Axes, mean: float, bar: float) -> None:
    axes.axhspan(mean - bar, mean + bar, color="white", alpha=0.7, linewidth=0, zorder=3)
    axes.axhline(mean, color="black", linewidth=1.2, zorder=4, label="plateau E[L]")
    axes.axhspan(
        mean - bar,
        mean + bar,
        facecolor="none",
        edgecolor="black",
        linestyle=":",
        linewidth=1.0,
        zorder=4,
        label=f"± {NUM_ERRORS:.0f} MCSE",
    )
