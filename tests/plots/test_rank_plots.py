"""Rank plots: exact differences, and a band that healthy chains leave as often as it says."""

from __future__ import annotations

import numpy as np
import pytest
from cases.draws import Array, draws_of, noise

from ppl_fe.plots import plot_ranks
from ppl_fe.plots.rank_plots import COLUMNS, GRID, band_half_width, rank_differences


def inside(traces: Array) -> bool:
    return bool(np.abs(rank_differences(traces)).max() <= band_half_width(traces, "x"))


def autocorrelated(chains: int, draws: int, share: float, seed: int) -> Array:
    """AR(1) of unit variance."""
    steps = noise(chains, draws, seed=seed)
    for k in range(1, draws):
        steps[:, k] = share * steps[:, k - 1] + np.sqrt(1 - share**2) * steps[:, k]
    return steps


def test_differences_by_the_definition() -> None:
    traces = noise(3, 20)
    everything = np.sort(traces.ravel())
    for own, line in zip(traces, rank_differences(traces), strict=True):
        ranks = (1 + np.searchsorted(everything, own)) / 60
        expected = [(ranks <= u + 1e-12).mean() - u for u in GRID]
        np.testing.assert_allclose(line, expected, atol=1e-12)


@pytest.mark.parametrize("share", [pytest.param(0.0, marks=pytest.mark.thorough), 0.8])
def test_one_law_stays_in_the_band(share: float) -> None:
    # 95 % of 200 cases: 190 ± 3.1; an autocorrelation that was not counted would leave hardly any.
    kept = sum(inside(autocorrelated(4, 300, share, seed)) for seed in range(200))
    assert kept >= 178, kept


def test_an_independent_law_leaves_it_as_often_as_said() -> None:
    kept = sum(inside(noise(4, 200, seed=seed)) for seed in range(200))
    assert 178 <= kept < 200


def test_a_chain_elsewhere_leaves_it() -> None:
    shifted = noise(4, 100)
    shifted[2] += 1.0
    assert not inside(shifted)
    wide = noise(4, 400)
    wide[1] *= 2
    assert not inside(wide)


def test_lines_and_labels() -> None:
    tree = draws_of(0.1 * noise(4, 100))
    every = plot_ranks(tree, ["loss", "w[3]"])
    assert [axes.get_title() for axes in every] == ["loss", "w[3]"]
    expected = rank_differences(tree["posterior"].to_dataset()["w"].values[..., 3])
    lines = every[1].get_lines()
    assert [line.get_label() for line in lines] == [f"chain {k}" for k in range(4)]
    for line, own in zip(lines, expected, strict=True):
        np.testing.assert_allclose(line.get_ydata(), own)
    half = band_half_width(tree["posterior"].to_dataset()["w"].values[..., 3], "w[3]")
    box = every[1].patches[0].get_extents().transformed(every[1].transData.inverted())
    assert (box.y0, box.y1) == pytest.approx((-half, half))
    assert every[0].get_ylabel() == "F(u) − u"
    assert all(axes.get_xlabel() == "fractional rank u" for axes in every)


def test_by_default_the_loss_and_small_sites() -> None:
    titles = [axes.get_title() for axes in plot_ranks(draws_of())]
    assert titles == ["loss", *(f"w[{k}]" for k in range(8))]
    constant = draws_of(np.zeros((4, 100)))
    assert "loss" not in [axes.get_title() for axes in plot_ranks(constant)]


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"names=\['slope'\]: there are loss, w\[0\]"):
        plot_ranks(draws_of(), ["slope"])
    with pytest.raises(ValueError, match=r"names=\['los'\]: did you mean 'loss'\?"):
        plot_ranks(draws_of(), ["los"])
    with pytest.raises(ValueError, match="one chain only"):
        plot_ranks(draws_of(noise(1, 100)))
    with pytest.raises(ValueError, match="'loss' never moves"):
        plot_ranks(draws_of(np.zeros((4, 100))), ["loss"])


def test_pictures_that_are_not_needed_are_taken_away() -> None:
    """Of a grid of several columns one name more than a row leaves places empty."""
    names = ["loss", *(f"w[{k}]" for k in range(COLUMNS))]
    every = plot_ranks(draws_of(0.1 * noise(4, 100)), names)
    assert len(every) == COLUMNS + 1
    assert list(every[0].get_figure().axes) == list(every)
