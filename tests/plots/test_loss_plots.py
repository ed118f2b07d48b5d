"""The picture of the loss along the chains shows the numbers that it was given."""

from __future__ import annotations

import numpy as np
import pytest
from arviz_stats.base import array_stats
from cases.draws import draws_of, noise
from matplotlib.figure import Figure

from ppl_fe.plots import plot_loss_traces

LOSS = 2 + 0.1 * noise(3, 60)


def horizontal(axes: object, label: str) -> float:
    (line,) = [line for line in axes.get_lines() if line.get_label() == label]  # type: ignore[attr-defined]
    low, high = line.get_ydata()
    assert low == high
    return float(low)


def test_traces_plateau_and_the_minimum() -> None:
    axes = plot_loss_traces(draws_of(LOSS), anchor_loss=1.5)
    for chain, trace in enumerate(LOSS):
        (line,) = [line for line in axes.get_lines() if line.get_label() == f"chain {chain}"]
        np.testing.assert_allclose(np.asarray(line.get_ydata()), trace)
        np.testing.assert_array_equal(np.asarray(line.get_xdata()), np.arange(60))
    assert horizontal(axes, "plateau E[L]") == pytest.approx(LOSS.mean())
    assert horizontal(axes, "$L_n(w^*)$") == 1.5
    (band,) = [patch for patch in axes.patches if patch.get_label() == "± 2 MCSE"]
    error = array_stats.mcse(LOSS, chain_axis=0, draw_axis=1, method="mean")
    box = band.get_extents().transformed(axes.transData.inverted())
    assert (box.y0, box.y1) == pytest.approx((LOSS.mean() - 2 * error, LOSS.mean() + 2 * error))
    assert axes.get_xlabel() == "draw"
    assert axes.get_ylabel() == "loss L (nats an example)"


def test_the_loss_at_the_minimum_is_that_of_the_estimate() -> None:
    assert horizontal(plot_loss_traces(draws_of(LOSS, anchor_loss=1.25)), "$L_n(w^*)$") == 1.25
    labels = [line.get_label() for line in plot_loss_traces(draws_of(LOSS)).get_lines()]
    assert "$L_n(w^*)$" not in labels


def test_given_axes_and_chosen_chains() -> None:
    given = Figure().subplots()
    axes = plot_loss_traces(draws_of(LOSS, thinning=5), chains=[1], axes=given)
    assert axes is given
    assert axes.get_xlabel() == "draw (5 steps each)"
    assert horizontal(axes, "plateau E[L]") == pytest.approx(LOSS[1].mean())
    assert not any(line.get_label() == "chain 0" for line in axes.get_lines())


def test_chains_that_have_not_mixed_have_no_plateau() -> None:
    apart = LOSS + np.array([[0.0], [0.0], [0.3]])
    axes = plot_loss_traces(draws_of(apart))
    assert horizontal(axes, "mean, not mixed") == pytest.approx(apart.mean())
    assert not axes.patches


def test_several_targets_have_several_plateaus() -> None:
    several = draws_of(noise(4, 50), num_groups=2)
    with pytest.raises(ValueError, match=r"2 targets side by side.*chains=\[0, 1\]"):
        plot_loss_traces(several)
    assert plot_loss_traces(several, chains=[0, 1]).get_lines()


@pytest.mark.parametrize("chains", [[7], [], [0, 9]])
def test_chains_that_are_not_there(chains: list[int]) -> None:
    with pytest.raises(ValueError, match=r"chains=.*there are chains \[0, 1, 2\]"):
        plot_loss_traces(draws_of(LOSS), chains=chains)


def test_what_is_no_run() -> None:
    with pytest.raises(TypeError, match="got list"):
        plot_loss_traces([1.0, 2.0])
    with pytest.raises(ValueError, match="3 draws a chain"):
        plot_loss_traces(draws_of(LOSS[:, :3]))
