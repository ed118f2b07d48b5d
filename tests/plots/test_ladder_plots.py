"""The ladder's picture: energies with their errors, and an area that is the estimate."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import ppl_fe as fe
from ppl_fe.plots import plot_ladder

BETA = np.linspace(0, 1, 25) ** 5
LADDER = pd.DataFrame(
    {
        "inverse_temperature": BETA,
        "energy": 50 / (1 + 9 * BETA),
        "energy_mcse": 0.1 + BETA,
        "variance": 450 / (1 + 9 * BETA) ** 2,  # −dE/db
    }
)


def test_energies_and_integrand() -> None:
    left, right = plot_ladder(LADDER)
    for axes, factor in ((left, np.ones(24)), (right, BETA[1:])):
        points, _, bars = axes.containers[0]
        np.testing.assert_allclose(points.get_xdata(), BETA[1:])
        np.testing.assert_allclose(points.get_ydata(), factor * LADDER["energy"][1:])
        half = [np.ptp(segment[:, 1]) / 2 for segment in bars[0].get_segments()]
        np.testing.assert_allclose(half, 2 * factor * LADDER["energy_mcse"][1:])
        assert axes.get_xscale() == "log"
        assert axes.get_xlabel() == "inverse temperature β"
    assert left.get_ylabel() == "E[nL] (nats)"
    assert right.get_ylabel() == "β E[nL] (nats per unit of ln β)"
    (prior,) = [line for line in left.get_lines() if line.get_label() == "prior, β = 0"]
    assert list(prior.get_ydata()) == [50.0, 50.0]


def test_the_shaded_area_is_the_free_energy() -> None:
    exact = 50 / 9 * np.log(10)
    _, right = plot_ladder(LADDER)
    (shade,) = [one for one in right.collections if str(one.get_label()).startswith("area")]
    label = float(str(shade.get_label()).split()[3])
    assert label == pytest.approx(exact, rel=1e-3)
    outline = shade.get_paths()[0].vertices
    x, y = np.log(outline[:, 0]), outline[:, 1]
    area = abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2  # the shoelace formula
    below = 50 * BETA[1]  # the first rung's piece is not drawn
    assert area + below == pytest.approx(exact, rel=1e-3)


def test_the_area_of_a_real_ladder_is_its_estimate() -> None:
    module = torch.nn.Linear(2, 1, bias=False)
    inputs = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    found = fe.integrate_free_energy(
        fe.FlatNetwork(module),
        (inputs, inputs.sum(1)),
        likelihood="normal",
        num_rungs=6,
        num_samples=200,
        warmup_steps=200,
        progress_bar=False,
    )
    _, right = plot_ladder(found)
    (shade,) = [one for one in right.collections if str(one.get_label()).startswith("area")]
    assert str(shade.get_label()) == f"area F = {found.free_energy:.5g} nats"


def test_energies_over_decades_are_drawn_on_a_log_axis() -> None:
    steep = LADDER.assign(energy=LADDER["energy"] ** 3)
    assert plot_ladder(LADDER)[0].get_yscale() == "linear"
    assert plot_ladder(steep)[0].get_yscale() == "log"
    assert plot_ladder(steep.assign(energy=steep["energy"] - 1000))[0].get_yscale() == "linear"


def test_a_rung_that_has_not_mixed_has_no_bar() -> None:
    mixed = LADDER.assign(r_hat=1.0, ess=900.0)
    mixed.loc[5, "r_hat"] = 1.4
    for axes in plot_ladder(mixed):
        points, _, bars = axes.containers[0]
        assert len(points.get_ydata()) == 24
        assert [k for k, bar in enumerate(bars[0].get_segments()) if not len(bar)] == [4]
    (shade,) = [one for one in axes.collections if str(one.get_label()).startswith("area")]
    assert str(shade.get_label()).endswith(" nats, 1 rungs not mixed")


def test_what_is_no_ladder() -> None:
    with pytest.raises(ValueError, match="columns inverse_temperature, energy"):
        plot_ladder(LADDER.drop(columns="variance"))
    with pytest.raises(ValueError, match="columns"):
        plot_ladder([1.0])
    for wrong in (LADDER.iloc[1:], LADDER.iloc[:2], LADDER.iloc[::-1]):
        with pytest.raises(ValueError, match="must rise from 0 over three rungs"):
            plot_ladder(wrong)
