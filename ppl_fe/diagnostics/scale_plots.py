"""Pictures of which parameters were selected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ppl_fe.diagnostics.plots import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_POINTS = 2000
MOST_KNEES = 5
MOST_BARS = 40


def plot_ranked_scales(
    ranked: NDArray[np.float64],
    num_selected: int,
    knees: Sequence[int],
    axes: Axes,
    what: str = "score",
) -> Axes:
    """Sorted scores against the share of parameters, both on log axes (the paper's λ-plot).

    Args:
        ranked: (D,) scores, largest first; those not above zero are not drawn.
        num_selected: the selected number, a full line.
        knees: numbers at the curve's bends, dashed lines; five at most are drawn.
        axes: where to draw.
        what: the vertical axis.

    Returns:
        The axes.
    """
    places = np.unique(np.geomspace(1, len(ranked), MOST_POINTS).round().astype(int))
    places = places[ranked[places - 1] > 0]
    axes.loglog(places / len(ranked), ranked[places - 1], color=COLOURS[0])
    axes.axvline(num_selected / len(ranked), color=COLOURS[5], label=f"selected: {num_selected:,}")
    for number, knee in enumerate(knees[:MOST_KNEES]):
        axes.axvline(
            knee / len(ranked),
            color="black",
            linewidth=0.8,
            linestyle="--",
            label=None if number else "knees",
        )
    axes.set_xlabel("share of parameters, largest first")
    axes.set_ylabel(what)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return axes


def plot_layers(table: pd.DataFrame, axes: Axes) -> Axes:
    """A bar a tensor, its selected share; of more than 40 tensors those with most selected.

    Args:
        table: columns `selected` and `share`, one row a tensor.
        axes: where to draw.

    Returns:
        The axes.
    """
    shown = table
    if len(table) > MOST_BARS:
        shown = table[table["selected"].rank(method="first", ascending=False) <= MOST_BARS]
    places = np.arange(len(shown))
    axes.barh(places, 100 * shown["share"].to_numpy(float), color=COLOURS[0])
    axes.set_yticks(places, [str(name) for name in shown.index], fontsize=6)
    axes.invert_yaxis()
    axes.set_xlabel("selected (%)")
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def plot_selection(
    ranked: NDArray[np.float64],
    num_selected: int,
    knees: Sequence[int],
    table: pd.DataFrame,
    what: str = "score",
) -> Figure:
    """`plot_ranked_scales` beside `plot_layers`, in a new figure.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'ppl-fe[plots]'") from error
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    plot_ranked_scales(ranked, num_selected, knees, left, what)
    plot_layers(table, right)
    return figure
