"""Faults that only a free energy, or a question put along with the draws, can have."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from cases.runs import gaussian, run
from cases.synthetic_runs import synthetic
from torch import nn

import ppl_fe as fe
from ppl_fe.diagnostics.run_data import read_run

X = torch.randn(60, 2, generator=torch.Generator().manual_seed(2))


def estimate(offset: float = 0.0, **changed: Any) -> fe.FreeEnergyEstimate:
    """Of a linear network whose targets are its own outputs, or off by `offset` at w*."""
    module = nn.Linear(2, 1)
    network = fe.FlatNetwork(module)
    with torch.no_grad():
        targets = network(network.anchor, X).squeeze(-1) + offset
    settings: dict[str, Any] = {
        "likelihood": "normal",
        "batch_size": None,
        "num_samples": 200,
        "warmup_steps": 100,
        "thinning": 4,
        "compile": "traced",
        "progress_bar": False,
    }
    return fe.estimate_free_energy(network, (X, targets), **{**settings, **changed})


@pytest.fixture(scope="module")
def at_minimum() -> fe.FreeEnergyEstimate:
    return estimate()


def test_chains_below_the_anchor(at_minimum: fe.FreeEnergyEstimate) -> None:
    assert "below_anchor" not in fe.diagnose(at_minimum).failures
    off = estimate(offset=5.0, num_samples=60)
    verdict = fe.diagnose(off)
    assert "below_anchor" in verdict.failures
    found = verdict.table.set_index("check")["value"]["below_anchor"]
    assert found == pytest.approx(off.llc, rel=1e-5)  # λ̂ itself, by what the draws carry
    assert off.draws.attrs["anchor_loss"] == off.anchor_loss


def test_a_step_that_moves_the_estimate() -> None:
    # Curvatures nβ(1 + …) + γ of 15 to 20: εa = 2.5 of at most 4 raises the variance 2.7-fold.
    coarse = estimate(kernel=fe.SGLD, step_size=0.14, num_samples=100, check_half_step=True)
    assert "half_step" in fe.diagnose(coarse).failures


def test_the_error_against_the_difference_that_matters(at_minimum: fe.FreeEnergyEstimate) -> None:
    for errors, fails in ((5, False), (3, True)):
        verdict = fe.diagnose(at_minimum, difference=errors * at_minimum.wbic_mcse)
        assert ("wbic_error" in verdict.failures) is fails
        value = verdict.table.set_index("check")["value"]["wbic_error"]
        assert value == pytest.approx(at_minimum.wbic_mcse, rel=1e-5)
    assert "wbic_error" not in fe.diagnose(at_minimum).table["check"].tolist()


COORDINATES = ["coordinate_r_hat", "coordinates_unmixed", "coordinate_apart"]


def of_an_estimate(changed: xr.DataTree, r_hat: float = 1.0) -> xr.DataTree:
    """Draws of known law as an estimate's: L(w*) = 0, and R-hat of every coordinate."""
    changed.attrs.update(anchor_loss=0.0, inverse_temperature=0.2, localization=1.0)
    changed.attrs["blocks"] = json.dumps({"a": [0, 2], "b": [2, 5]})
    table = np.ones((4, 5))
    table[2] = r_hat
    over = {"moment": ["mean", "sd", "r_hat", "ess"]}
    changed["moments"] = xr.Dataset({"w": (("moment", "w_dim_0"), table)}, coords=over)
    return changed


def mirrored(axis: float = 0.0) -> xr.DataTree:
    """One chain in a mirror image of the others' mode: its loss is theirs, its weights are not."""
    tree = synthetic(np.random.default_rng(5))
    posterior = tree["posterior"].to_dataset()
    posterior["w"][2] += axis
    tree["posterior"] = posterior
    return tree


def test_weights_that_do_not_mix_are_a_note_of_an_estimate() -> None:
    verdict = fe.diagnose(of_an_estimate(mirrored(20.0), r_hat=3.0))
    assert verdict.passed, verdict
    assert [check.name for check in verdict.checks if check.noted] == COORDINATES
    assert fe.diagnose(of_an_estimate(mirrored())).passed
    # Of any other run they are what it is for.
    failures = fe.diagnose(mirrored(20.0)).failures
    assert {"chain_apart", "r_hat", "ess_bulk"} <= set(failures)


def test_the_loss_of_an_estimate_has_to_mix() -> None:
    tree = of_an_estimate(mirrored())
    stats = tree["sample_stats"].to_dataset()
    stats["loss"][2] += 20.0
    tree["sample_stats"] = stats
    failures = fe.diagnose(tree).failures
    assert {"chain_apart", "r_hat", "ess_bulk"} <= set(failures)
    assert not set(COORDINATES) & set(failures)


def test_layers_are_the_network_s(at_minimum: fe.FreeEnergyEstimate) -> None:
    draws = at_minimum.draws
    assert json.loads(draws.attrs["blocks"]) == {"weight": [0, 2], "bias": [2, 3]}
    assert read_run(draws).layers == {"weight": slice(0, 2), "bias": slice(2, 3)}


def shared_starts(warmup_steps: int, thinning: int) -> xr.DataTree:
    """Eight superchains of four chains with one start each, twenty draws a chain."""
    starts = 10 * torch.randn(8, 3, generator=torch.Generator().manual_seed(3))
    return run(
        fe.BAOAB(gaussian, step_size=0.25, friction=1.0),
        num_chains=32,
        num_samples=20,
        thinning=thinning,
        warmup_steps=warmup_steps,
        initial_params={"w": starts.repeat_interleave(4, 0)},
    )


def test_many_short_chains_by_superchains() -> None:
    good = fe.diagnose(shared_starts(200, thinning=16), superchains=8)
    assert "nested_r_hat" not in good.failures
    # Split R-hat of chains of twenty draws is above 1.01 by chance alone.
    assert "r_hat" not in good.table["check"].tolist()
    bad = fe.diagnose(shared_starts(0, thinning=1), superchains=8)
    assert "nested_r_hat" in bad.failures


def test_temperatures_need_both_size_and_significance() -> None:
    tree = synthetic(np.random.default_rng(4), num_draws=4000)
    stats = tree["sample_stats"].to_dataset()
    for factor, fails in ((1.05, False), (1.3, True), (0.7, True)):
        warmer = stats.assign(stiff_temperature=factor * stats["stiff_temperature"])
        tree["sample_stats"] = warmer
        assert ("stiff_temperature" in fe.diagnose(tree).failures) is fails
    few = synthetic(np.random.default_rng(4), num_draws=12)
    stats = few["sample_stats"].to_dataset()
    few["sample_stats"] = stats.assign(stiff_temperature=1.3 * stats["stiff_temperature"])
    assert "stiff_temperature" not in fe.diagnose(few).failures  # nothing is known yet


@pytest.mark.parametrize(
    "name", ["stiff_temperature", "configurational_temperature", "block_temperature"]
)
def test_a_temperature_that_is_not_a_number_fails(name: str) -> None:
    tree = synthetic(np.random.default_rng(4), num_draws=100)
    stats = tree["sample_stats"].to_dataset()
    tree["sample_stats"] = stats.assign({name: stats[name].where(stats["draw"] != 7)})
    assert name.replace("configurational_", "") in fe.diagnose(tree).failures
