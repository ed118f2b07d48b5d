"""The effective temperature against the step: measured points on the predicted curve."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from arviz_stats.base import array_stats
from cases.draws import draws_of
from matplotlib.figure import Figure

import ppl_fe as fe
from ppl_fe.plots import plot_temperature_against_step
from ppl_fe.plots.temperature_plots import predicted_temperature

CURVATURE = 25.0
TUNED: dict[str, Any] = {
    "sampler": "SGLD",
    "step_size": "auto",
    "tuned_stiffest_curvature": [CURVATURE] * 4,
    "tuned_gradient_noise": [0.0] * 4,
}


def model() -> None:
    pyro.sample("w", dist.Normal(0.0, torch.full((2,), CURVATURE**-0.5)).to_event(1))


@pytest.fixture(scope="module")
def runs() -> list[xr.DataTree]:
    return [
        fe.sample(
            fe.SGLD(model, step_size=step, tolerance=0.05),
            num_samples=200,
            thinning=3,
            num_chains=32,
            compile="traced",
            progress_bar=False,
        )
        for step in ("auto", 0.03, 0.08)
    ]


def lines(axes: Any) -> dict[str, Any]:
    return {str(line.get_label()): line for line in axes.get_lines()}


@pytest.mark.thorough
def test_measured_points_lie_on_the_predicted_curve(runs: list[xr.DataTree]) -> None:
    axes = plot_temperature_against_step(runs)
    points, _, bars = axes.containers[0]
    steps, measured = np.asarray(points.get_xdata()), np.asarray(points.get_ydata())
    assert len(steps) == 3
    half = [np.ptp(segment[:, 1]) / 2 for segment in bars[0].get_segments()]
    curve = lines(axes)["predicted at most"]
    predicted = np.interp(steps, curve.get_xdata(), curve.get_ydata())
    # One curvature and no gradient noise: SGLD's T_eff = 1/(1 − εa/4), exactly.
    np.testing.assert_allclose(predicted, 1 / (1 - steps * CURVATURE / 4), rtol=5e-3)
    errors = np.asarray(half) / 2
    assert (np.abs(measured - predicted) < 4.5 * errors).all()
    assert (errors[1:] < 0.05).all(), "precise enough to tell the steps apart"
    assert measured[2] - errors[2] > 1.5


def test_the_numbers_drawn(runs: list[xr.DataTree]) -> None:
    axes = plot_temperature_against_step(runs)
    auto = runs[0]
    stats = auto["sample_stats"].to_dataset()
    own = float(stats["step_size"].mean())
    (chosen,) = [line for name, line in lines(axes).items() if name.startswith("chosen ε")]
    assert list(chosen.get_xdata()) == pytest.approx([own, own], rel=1e-6)
    points, _, bars = axes.containers[0]
    trace = stats["stiff_temperature"].values.astype(np.float64)
    place = int(np.argmin(np.abs(np.asarray(points.get_xdata()) - own)))
    error = array_stats.mcse(trace, chain_axis=0, draw_axis=1, method="mean")
    np.testing.assert_allclose(
        bars[0].get_segments()[place][:, 1], trace.mean() + np.array([-2, 2]) * error
    )
    assert list(lines(axes)["target T"].get_ydata()) == [1.0, 1.0]
    box = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    assert (box.y0, box.y1) == pytest.approx((1.0, 1.05))
    assert (axes.get_xscale(), axes.get_xlabel()) == ("log", "step size ε")
    assert axes.get_ylabel() == "effective temperature, stiffest direction"
    given = Figure().subplots()
    assert plot_temperature_against_step(runs, axes=given) is given


def test_the_prediction_is_the_samplers_own() -> None:
    """BAOAB chooses its friction anew at each step, as a run would; by hand it stays."""
    automatic = fe.sample(fe.BAOAB(model), num_samples=20, progress_bar=False)
    own = np.array([automatic.attrs["tuned_step_size"][0]])
    facts = {**automatic.attrs, "tuned_gradient_noise": [0.5]}
    auto = predicted_temperature(facts, np.array([0.5, 1.0]) * own)
    assert (auto > 1).all()
    assert (auto <= 1.05 + 1e-9).all(), "within the tolerance"
    by_hand = predicted_temperature({**facts, "friction": 0.1}, own)
    h = np.sqrt(own)
    noise = own * 0.5 / 4 / np.tanh(0.1 * h / 2)
    stiffest = automatic.attrs["tuned_stiffest_curvature"][0]
    np.testing.assert_allclose(by_hand, 1 + noise / (1 - own * stiffest / 4), rtol=1e-6)
    np.testing.assert_allclose(
        predicted_temperature(automatic.attrs, own)[0],
        1 + automatic.attrs["tuned_excess_temperature"][0],
        rtol=1e-5,
    )


def test_the_prediction_at_another_temperature() -> None:
    facts = {**TUNED, "temperature": 2.0, "tuned_gradient_noise": [8.0]}
    # (T + εs²/4)/(1 − εa/4) with ε = 0.04
    expected = (2.0 + 0.04 * 8 / 4) / (1 - 0.04 * CURVATURE / 4)
    assert predicted_temperature(facts, np.array([0.04, 0.2]))[0] == pytest.approx(expected)
    assert np.isinf(predicted_temperature(facts, np.array([0.17]))[0])


def test_refusals() -> None:
    auto: Any
    auto, by_hand = draws_of(**TUNED), draws_of(**{**TUNED, "step_size": 0.01})
    with pytest.raises(TypeError, match="runs must be a list of draws, got DataTree"):
        plot_temperature_against_step(auto)
    for wrong, number in (([by_hand], 0), ([auto, auto], 2), ([], 0)):
        with pytest.raises(ValueError, match=rf"{number} of the {len(wrong)} runs have step_size="):
            plot_temperature_against_step(wrong)
    with pytest.raises(ValueError, match="differ in their sampler"):
        plot_temperature_against_step([auto, draws_of(sampler="BAOAB", step_size=0.01)])
    with pytest.raises(ValueError, match="differ in their temperature"):
        plot_temperature_against_step([auto, draws_of(sampler="SGLD", temperature=0.5)])
    with pytest.raises(ValueError, match="the sampler Mine is none of fe's"):
        plot_temperature_against_step([draws_of(**{**TUNED, "sampler": "Mine"})])
    with pytest.raises(ValueError, match="measured no curvature"):
        predicted_temperature({"sampler": "SGLD"}, np.ones(1))
