"""Pictures of which parameters were selected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ppl_fe.arguments import named_arguments
from ppl_fe.plots.palette import (
    COLOURS,
    HEIGHT,
    height_of_rows,
    legend_above,
    name_rows,
    one_axes,
    row_of_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_POINTS = 2000
MOST_KNEES = 5
MOST_BARS = 40


@named_arguments
def plot_ranked_scales(
    ranked: NDArray[np.float64],
    num_selected: int,
    knees: Sequence[int] = (),
    *,
    what: str = "score",
    axes: Axes | None = None,
) -> Axes:
    """Plot sorted scores against the share of parameters, both on log axes (the λ-plot).

    Args:
        ranked: (D,) scores, largest first; those not above zero are not drawn.
        num_selected: the selected number, a full line.
        knees: numbers at the curve's bends, dashed lines; five at most are drawn.
        what: the vertical axis.
        axes: where to draw; by default a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: no score above zero, or scores that are not sorted.

    Example:
        >>> axes = plot_ranked_scales(np.geomspace(1, 1e-3, 500), num_selected=5)
        >>> axes.get_xscale(), axes.get_yscale()
        ('log', 'log')
    """
    if not (len(ranked) and ranked[0] > 0):
        raise ValueError("ranked has no score above zero: there is nothing on a log axis")
    if (np.diff(ranked) > 0).any():
        raise ValueError("ranked must be sorted, largest first")
    axes = one_axes(axes)
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
    legend_above(axes)
    return axes


@named_arguments
def plot_selected_by_layer(table: pd.DataFrame, *, axes: Axes | None = None) -> Axes:
    """Draw a bar a tensor, its selected share; of more than 40 tensors those with most selected.

    Args:
        table: columns `selected` and `share`, one row a tensor, as of `Selection.by_layer`.
        axes: where to draw; by default a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: a column is missing, or there is no tensor.

    Example:
        >>> table = pd.DataFrame({"selected": [3, 1], "share": [0.3, 0.5]}, index=["w", "b"])
        >>> [float(bar.get_width()) for bar in plot_selected_by_layer(table).patches]
        [30.0, 50.0]
    """
    if not {"selected", "share"} <= set(table) or table.empty:
        raise ValueError(
            f"table must have rows and the columns selected and share; it has {list(table.columns)}"
        )
    shown = table
    if len(table) > MOST_BARS:
        shown = table[table["selected"].rank(method="first", ascending=False) <= MOST_BARS]
    axes = one_axes(axes, height_of_rows(len(shown)))
    axes.barh(np.arange(len(shown)), 100 * shown["share"].to_numpy(float), color=COLOURS[0])
    name_rows(axes, [str(name) for name in shown.index])
    axes.set_xlabel("selected (%)")
    return axes


def plot_selection(
    ranked: NDArray[np.float64],
    num_selected: int,
    knees: Sequence[int],
    table: pd.DataFrame,
    what: str = "score",
) -> NDArray[Any]:
    """Draw `plot_ranked_scales` beside `plot_selected_by_layer`.

    Returns:
        (2,) axes, in a new figure.

    Raises:
        ImportError: without matplotlib.
    """
    every = row_of_axes(max(HEIGHT, height_of_rows(min(len(table), MOST_BARS))))
    plot_ranked_scales(ranked, num_selected, knees, what=what, axes=every[0])
    plot_selected_by_layer(table, axes=every[1])
    return every
