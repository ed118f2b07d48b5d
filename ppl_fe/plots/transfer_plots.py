"""A criterion of pretrained checkpoints against how well they transferred."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ppl_fe.arguments import did_you_mean, named_arguments
from ppl_fe.diagnostics.checks.mixing import believed_errors
from ppl_fe.plots.palette import COLOURS, MARKERS, one_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@named_arguments
def plot_transfer(
    table: pd.DataFrame,
    outcome: str,
    *,
    criterion: str = "wbic",
    groups: Sequence[Any] | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Plot a criterion against transfer accuracy, one point a checkpoint, with error bars of both.

    Args:
        table: of `rank_checkpoints`, with the outcome as a further column; the columns
            `{criterion}_mcse` and `{outcome}_error` give the bars (one standard error), where
            they exist; chains that have not mixed have none.
        outcome: the column on the vertical axis.
        criterion: the column on the horizontal axis.
        groups: a label a checkpoint (its learning rate, say), shown by colour and marker; none by
            default.
        axes: where to draw; by default a new figure, with a legend of the groups.

    Returns:
        The axes.

    Raises:
        ValueError: a column is missing, or not one group a row.

    Example:
        >>> table = pd.DataFrame({"wbic": [9.0, 7.5], "wbic_mcse": 0.2, "pets": [0.8, 0.9]})
        >>> plot_transfer(table, "pets").get_xlabel()
        'pretraining WBIC (nats)'
    """
    for name in (criterion, outcome):
        if name not in table:
            near = did_you_mean(name, map(str, table.columns))
            instead = near or f"it has {list(table.columns)}"
            raise ValueError(f"the table has no column {name!r}; {instead}")
    if groups is not None and len(groups) != len(table):
        raise ValueError(f"groups: {len(groups)} labels for {len(table)} checkpoints")
    own = axes is None
    axes = one_axes(axes)
    labels = np.zeros(len(table)) if groups is None else np.asarray(groups)
    for number, label in enumerate(dict.fromkeys(labels.tolist())):
        part = table[labels == label]
        axes.errorbar(
            part[criterion].to_numpy(float),
            part[outcome].to_numpy(float),
            xerr=_monte_carlo_errors(part, f"{criterion}_mcse"),
            yerr=_errors(part, f"{outcome}_error"),
            fmt=MARKERS[number % len(MARKERS)],
            color=COLOURS[number % len(COLOURS)],
            label=None if groups is None else str(label),
            markersize=5,
            elinewidth=0.8,
            capsize=2,
        )
    axes.set_xlabel("pretraining WBIC (nats)" if criterion == "wbic" else criterion)
    axes.set_ylabel(f"accuracy, {outcome}")
    if own and groups is not None:
        axes.legend(frameon=False)
    return axes


def _monte_carlo_errors(table: pd.DataFrame, name: str) -> Any:
    errors = _errors(table, name)
    return None if errors is None else believed_errors(table, errors)


def _errors(table: pd.DataFrame, name: str) -> Any:
    return table[name].to_numpy(float) if name in table else None
