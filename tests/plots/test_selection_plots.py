"""Pictures of a selection: the λ-plot and the share of each layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from ppl_fe.plots import plot_ranked_scales, plot_selected_by_layer
from ppl_fe.plots.selection_plots import plot_selection

RANKED = np.geomspace(1, 1e-3, 500)
TABLE = pd.DataFrame({"selected": [3, 0, 4], "share": [0.3, 0.0, 0.5]}, index=["a", "b", "c"])


def test_ranked_scales() -> None:
    axes: Any = plot_ranked_scales(RANKED, 50, [10, 100, 1, 2, 3, 4], what="scale")
    curve, selected, *knees = axes.get_lines()
    places = (np.asarray(curve.get_xdata()) * 500).round().astype(int)
    assert set(places) >= {1, 2, 3, 10, 500}
    np.testing.assert_allclose(curve.get_ydata(), RANKED[places - 1])
    assert list(selected.get_xdata()) == [0.1, 0.1]
    assert selected.get_label() == "selected: 50"
    assert [line.get_xdata()[0] for line in knees] == [k / 500 for k in (10, 100, 1, 2, 3)]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_xlabel() == "share of parameters, largest first"
    assert axes.get_ylabel() == "scale"


@pytest.mark.parametrize("num_selected", [1, 50, 450])
def test_the_legend_crosses_no_line(num_selected: int) -> None:
    ranked = np.append(np.full(250, 1.0), np.full(250, 1e-3))  # into all corners
    axes, beside = plot_selection(ranked, num_selected, [10, 100, 250], TABLE, "scale")
    axes.figure.draw_without_rendering()
    legend = axes.get_legend().get_window_extent()
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == [f"selected: {num_selected}", "knees"]
    assert not any(legend.overlaps(line.get_window_extent()) for line in axes.get_lines())
    assert not legend.overlaps(beside.get_tightbbox())
    assert axes.figure.bbox.containsy(legend.y1)


def test_scores_of_zero_have_no_place_on_a_log_axis() -> None:
    curve = plot_ranked_scales(np.append(RANKED, np.zeros(100)), 50).get_lines()[0]
    assert np.asarray(curve.get_ydata()).min() == pytest.approx(1e-3)
    for wrong in (np.zeros(3), np.zeros(0)):
        with pytest.raises(ValueError, match="no score above zero"):
            plot_ranked_scales(wrong, 1)
    with pytest.raises(ValueError, match="sorted, largest first"):
        plot_ranked_scales(RANKED[::-1], 1)


def test_share_of_each_layer() -> None:
    axes: Any = plot_selected_by_layer(TABLE)
    assert [float(bar.get_width()) for bar in axes.patches] == [30.0, 0.0, 50.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert axes.get_xlabel() == "selected (%)"
    with pytest.raises(ValueError, match="columns selected and share; it has"):
        plot_selected_by_layer(TABLE[["selected"]])
    with pytest.raises(ValueError, match="must have rows"):
        plot_selected_by_layer(TABLE.iloc[:0])


def test_of_many_layers_those_with_most_selected() -> None:
    many = pd.DataFrame({"selected": range(100), "share": np.linspace(0, 0.99, 100)})
    axes: Any = plot_selected_by_layer(many)
    assert [float(bar.get_width()) for bar in axes.patches] == pytest.approx(range(60, 100))


def test_given_axes_and_the_two_together() -> None:
    left, right = Figure().subplots(1, 2)
    assert plot_ranked_scales(RANKED, 50, axes=left) is left
    assert plot_selected_by_layer(TABLE, axes=right) is right
    every = plot_selection(RANKED, 50, [], TABLE, "scale")
    assert every.shape == (2,)
    assert every[0].get_ylabel() == "scale"
    assert len(every[1].patches) == 3
