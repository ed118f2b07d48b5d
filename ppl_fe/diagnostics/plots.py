"""Pictures of free-energy estimates; each draws on given axes, or makes them, and returns them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito's colours: told apart by the colour-blind, and in print by their lightness.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")


def plot_transfer(
    table: pd.DataFrame,
    outcome: str,
    *,
    criterion: str = "wbic",
    groups: Sequence[Any] | None = None,
    axes: Axes | None = None,
) -> Axes:
    """A criterion against transfer accuracy, one point a checkpoint, with error bars of both.

    Args:
        table: of `rank_checkpoints`, with the outcome as a further column; the columns
            `{criterion}_mcse` and `{outcome}_error` give the bars (one standard error), where
            they exist.
        outcome: the column on the vertical axis.
        criterion: the column on the horizontal axis.
        groups: a label a checkpoint (its learning rate, say), told apart by colour and marker.
        axes: where to draw; by default a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: a column is missing.
    """
    for name in (criterion, outcome):
        if name not in table:
            raise ValueError(f"the table has no column {name!r}; it has {list(table.columns)}")
    axes = _axes(axes)
    labels = np.zeros(len(table)) if groups is None else np.asarray(groups)
    for number, label in enumerate(dict.fromkeys(labels.tolist())):
        part = table[labels == label]
        axes.errorbar(
            part[criterion].to_numpy(float),
            part[outcome].to_numpy(float),
            xerr=_errors(part, f"{criterion}_mcse"),
            yerr=_errors(part, f"{outcome}_error"),
            fmt="osD^vPX"[number % 7],
            color=COLOURS[number % len(COLOURS)],
            label=None if groups is None else str(label),
            markersize=5,
            elinewidth=0.8,
            capsize=2,
        )
    axes.set_xlabel("pretraining WBIC (nats)" if criterion == "wbic" else criterion)
    axes.set_ylabel(f"accuracy, {outcome}")
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def plot_loss_traces(
    draws: xr.DataTree,
    anchor_loss: float | None = None,
    *,
    chains: Sequence[int] | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Loss of every chain against the draw, with L_n(w*) and the plateau.

    A healthy trace levels off above L_n(w*) after the warm-up (which is not stored); one that
    goes below it, or still rises, says that its λ̂ is not to be believed.

    Args:
        draws: of `fe.sample` or an estimate.
        anchor_loss: L_n(w*), drawn as a dashed line.
        chains: which to draw; default all.
        axes: where to draw; by default a new figure.

    Returns:
        The axes.
    """
    axes = _axes(axes)
    loss = draws["sample_stats"]["loss"]
    if chains is not None:
        loss = loss.sel(chain=list(chains))
    for number, chain in enumerate(loss.to_numpy()):
        axes.plot(chain, color=COLOURS[number % len(COLOURS)], linewidth=0.6, alpha=0.8)
    axes.axhline(float(loss.mean()), color="black", linewidth=1.2, label="plateau, E[L]")
    if anchor_loss is not None:
        axes.axhline(anchor_loss, color="black", linewidth=1.2, linestyle="--", label="L(w*)")
    axes.set_xlabel("draw")
    axes.set_ylabel("loss (nats an example)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return axes


def _axes(axes: Axes | None) -> Axes:
    if axes is not None:
        return axes
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'ppl-fe[plots]'") from error
    return Figure(figsize=(5, 3.6), layout="constrained").subplots()


def _errors(table: pd.DataFrame, name: str) -> Any:
    return table[name].to_numpy(float) if name in table else None
