"""Thermodynamic integration: the quadrature alone, its bookkeeping and its refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from exact import linear_gaussian_posterior
from torch import nn

import ppl_fe as fe
from ppl_fe.free_energy.ladders import corrected_trapezoid, equal_lengths

N = 30
X = torch.randn(N, 2, generator=torch.Generator().manual_seed(111))
Y = torch.randn(N, generator=torch.Generator().manual_seed(112))
FAST: dict[str, Any] = {
    "likelihood": "normal",
    "compile": "traced",
    "progress_bar": False,
    "num_samples": 400,
}


def network() -> fe.FlatNetwork:
    return fe.FlatNetwork(nn.Linear(2, 1, bias=False)).with_state({"weight": torch.zeros(1, 2)})


def integrate(**options: Any) -> fe.ThermodynamicEstimate:
    return fe.integrate_free_energy(network(), (X, Y), **{**FAST, **options})


def ladder_of_a_gaussian(num_rungs: int, rungs: Any = None) -> pd.DataFrame:
    """nL = ½(w/σ)²·10 under N(0, 1): E = 5/(1 + 10 b), Var = 50/(1 + 10 b)², exactly."""
    b = (np.arange(num_rungs + 1) / num_rungs) ** 5 if rungs is None else np.append(0.0, rungs)
    return pd.DataFrame(
        {
            "inverse_temperature": b,
            "energy": 5 / (1 + 10 * b),
            "energy_mcse": 0.1,
            "variance": 50 / (1 + 10 * b) ** 2,
            "ess": 1e12,
        }
    )


def test_rungs_at_equal_lengths_nearly_halve_the_squared_error() -> None:
    """√V = √50/(1 + 10 b) has the length log(1 + 10 b), so that rungs are known exactly."""
    pilot = ladder_of_a_gaussian(12)
    rungs = equal_lengths(
        pilot["inverse_temperature"].to_numpy(), pilot["variance"].to_numpy(), num_rungs=8
    )
    assert rungs == pytest.approx((11 ** (np.arange(1, 9) / 8) - 1) / 10, rel=0.02)
    errors = []
    for ladder in (ladder_of_a_gaussian(8), ladder_of_a_gaussian(8, rungs)):
        value, error = corrected_trapezoid(
            ladder.assign(energy_mcse=0.1 * np.sqrt(ladder["variance"]))
        )
        assert value == pytest.approx(0.5 * math.log(11), rel=5e-3)
        errors.append(error)
    assert errors[1] ** 2 < 0.6 * errors[0] ** 2


def test_the_corrected_trapezoid_is_of_fourth_order() -> None:
    exact = 0.5 * math.log(11)
    errors = [abs(corrected_trapezoid(ladder_of_a_gaussian(k))[0] - exact) for k in (12, 24, 48)]
    assert errors[1] < 1e-3 * exact
    # Sixteen times less at half the spacing.
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.4)
    assert errors[1] / errors[2] == pytest.approx(16, rel=0.2)


def test_an_error_of_each_rung_counts_once() -> None:
    ladder = ladder_of_a_gaussian(12)
    value, mcse = corrected_trapezoid(ladder)
    weights = []
    for k in range(len(ladder)):
        moved = ladder.copy()
        moved["energy"] += 0.1 * (moved.index == k)
        weights.append(corrected_trapezoid(moved)[0] - value)
    assert mcse == pytest.approx(float(np.linalg.norm(weights)), rel=1e-3)


def test_the_result_and_its_ladder() -> None:
    found = integrate(inverse_temperature=0.5, num_rungs=12, localization=4.0, seed=1)
    inputs, targets = X.double().numpy(), Y.double().numpy()
    exact = linear_gaussian_posterior(inputs, targets, np.zeros(2), gamma=4.0, beta=0.5)
    assert abs(found.free_energy - exact.free_energy) < 4 * found.mcse + found.ladder_error
    assert found.mcse < 0.5
    ladder = found.ladder
    assert ladder["inverse_temperature"].tolist() == pytest.approx(
        [0.5 * (k / 12) ** 5 for k in range(13)], rel=1e-6
    )
    for k in (0, 8, 12):
        beta, energy, error = ladder.iloc[k, :3].tolist()
        # The first rung is the localiser itself, β = 0, which the closed form nears as a limit.
        at = linear_gaussian_posterior(inputs, targets, np.zeros(2), gamma=4.0, beta=beta or 1e-9)
        assert abs(energy - at.wbic) < 4 * error
    assert found.draws.sample_stats.sizes["chain"] == 24
    text = str(found)
    assert f"{found.free_energy:.3f} ± {found.mcse:.3f} nats" in text
    assert "13 rungs" in text


def test_a_rung_that_has_not_mixed_leaves_no_error_bar() -> None:
    ladder = ladder_of_a_gaussian(12).assign(r_hat=1.001, ess=900.0)
    value, mcse = corrected_trapezoid(ladder)
    good = fe.ThermodynamicEstimate(value, mcse, 0.0, ladder, xr.DataTree())
    assert f"{value:.3f} ± {mcse:.3f} nats" in str(good)
    ladder.loc[3, ["r_hat", "ess"]] = 1.4, 5.0
    text = str(fe.ThermodynamicEstimate(value, mcse, 0.0, ladder, xr.DataTree()))
    assert f"{value:.3f} ± — nats" in text
    assert "(1 rungs have not mixed, R-hat up to 1.40, ESS down to 5: raise num_samples)" in text


@pytest.mark.parametrize("rungs", [2, 0, 7])
def test_a_number_of_rungs_that_does_not_halve(rungs: int) -> None:
    with pytest.raises(ValueError, match="num_rungs must be even and at least 4"):
        integrate(num_rungs=rungs)


@pytest.mark.parametrize("name", ["batch_size", "thinning"])
def test_minibatches_and_thinning_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        integrate(**{name: 10})


@pytest.mark.parametrize("name", ["inverse_temperature", "localization"])
def test_what_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        integrate(**{name: 0.0})


@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.thorough), 2])
def test_data_too_few_for_a_default_temperature(n: int) -> None:
    # 1/log n is no temperature there, and none is needed: the ladder has its own.
    short: dict[str, Any] = {**FAST, "num_samples": 100, "warmup_steps": 200}
    found = fe.integrate_free_energy(network(), (X[:n], Y[:n]), num_rungs=4, **short)
    inputs, targets = X[:n].double().numpy(), Y[:n].double().numpy()
    exact = linear_gaussian_posterior(inputs, targets, np.zeros(2), gamma=1.0, beta=1.0)
    assert abs(found.free_energy - exact.free_energy) < 4 * found.mcse + found.ladder_error


def test_a_lost_chain_is_an_error_and_no_bias() -> None:
    # Stable on the flat rungs, unstable on the cold ones.
    with (
        pytest.warns(RuntimeWarning, match="left out"),
        pytest.raises(FloatingPointError, match="smaller step_size"),
    ):
        integrate(kernel=fe.SGLD, step_size=1.0, num_rungs=4, num_samples=20, warmup_steps=100)
