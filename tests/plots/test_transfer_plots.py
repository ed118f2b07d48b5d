"""WBIC against transfer accuracy, and what all pictures have in common."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from ppl_fe.plots import plot_selected_by_layer, plot_transfer
from ppl_fe.plots.palette import COLOURS, LINE_STYLES, MARKERS

TABLE = pd.DataFrame(
    {
        "wbic": [10.0, 12.0, 9.0],
        "wbic_mcse": [0.5, 0.6, 0.7],
        "pets": [0.8, 0.7, 0.9],
        "pets_error": [0.01, 0.02, 0.03],
    },
    index=["a", "b", "c"],
)


def test_points_with_error_bars_of_both() -> None:
    axes = plot_transfer(TABLE, "pets")
    points, _, (across, along) = axes.containers[0]
    np.testing.assert_allclose(points.get_xdata(), TABLE["wbic"])
    np.testing.assert_allclose(points.get_ydata(), TABLE["pets"])
    for k, bar in enumerate(across.get_segments()):
        np.testing.assert_allclose(np.ptp(bar[:, 0]) / 2, TABLE["wbic_mcse"].iloc[k])
    for k, bar in enumerate(along.get_segments()):
        np.testing.assert_allclose(np.ptp(bar[:, 1]) / 2, TABLE["pets_error"].iloc[k])
    assert axes.get_xlabel() == "pretraining WBIC (nats)"
    assert axes.get_ylabel() == "accuracy, pets"
    assert axes.get_legend() is None


def test_chains_that_have_not_mixed_have_no_bar_across() -> None:
    mixed = TABLE.assign(r_hat=[1.0, 1.4, 1.0], ess=[900.0, 900.0, 5.0])
    points, _, (across, along) = plot_transfer(mixed, "pets").containers[0]
    assert len(points.get_xdata()) == 3
    assert [len(bar) for bar in across.get_segments()] == [2, 0, 0]
    assert [len(bar) for bar in along.get_segments()] == [2, 2, 2]


def test_groups_differ_in_colour_and_marker() -> None:
    axes = plot_transfer(TABLE, "pets", groups=[0.1, 0.2, 0.1])
    first, second = (container[0] for container in axes.containers)
    np.testing.assert_allclose(first.get_xdata(), [10.0, 9.0])
    np.testing.assert_allclose(second.get_xdata(), [12.0])
    assert first.get_color() != second.get_color()
    assert first.get_marker() != second.get_marker()
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["0.1", "0.2"]


def test_given_axes_and_other_criteria() -> None:
    given = Figure().subplots()
    table = TABLE.assign(llc=[1.0, 2.0, 3.0])
    assert plot_transfer(table, "pets", criterion="llc", axes=given) is given
    assert given.get_xlabel() == "llc"
    with pytest.raises(ValueError, match="no column 'cars'; it has"):
        plot_transfer(TABLE, "cars")
    with pytest.raises(ValueError, match=r"no column 'wbc'; did you mean 'wbic'\?"):
        plot_transfer(TABLE, "pets", criterion="wbc")
    with pytest.raises(ValueError, match="groups: 2 labels for 3 checkpoints"):
        plot_transfer(TABLE, "pets", groups=[1, 2])


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install 'ppl-fe\[plots\]'"):
        plot_selected_by_layer(pd.DataFrame({"selected": [1], "share": [0.5]}))


def test_the_palette_tells_all_apart() -> None:
    assert len(set(COLOURS)) == len(set(MARKERS)) == 7
    assert len(set(LINE_STYLES)) == 4
