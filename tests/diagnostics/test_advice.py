"""What is advised names settings that the run has, and what failed, and lengths that can be run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from cases.synthetic_runs import synthetic
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import ppl_fe as fe
from ppl_fe.diagnostics.checks.lengths import relaxation
from ppl_fe.diagnostics.checks.mixing import mixing_notes
from ppl_fe.diagnostics.run_data import read_run
from ppl_fe.inference.warmup.advice import (
    MOST_STEPS,
    has_dense_metric,
    longer,
    quieter,
    shorter_ways,
)

Y = torch.linspace(-1.0, 2.0, 40)
SHORT: dict[str, Any] = {
    "num_samples": 2,
    "warmup_steps": 1,
    "num_chains": 1,
    "compile": "eager",
    "progress_bar": False,
}


def normal_mean(y: Tensor, size: int | None = None) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 40, subsample_size=size or len(y)) as rows:
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y if len(y) < 40 else y[rows])


def facts(*args: Any, **settings: Any) -> dict[Any, Any]:
    """The attributes of a run."""
    kernel = fe.SGLD(normal_mean, step_size=0.01, **settings)
    return dict(fe.sample(kernel, *args, **SHORT).attrs)


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(Y[:, None], Y), batch_size=4)


def on_pairs(x: Tensor, y: Tensor) -> None:
    normal_mean(y, 4)


def test_less_gradient_noise_by_what_the_run_has() -> None:
    assert quieter(facts(Y, 40)) == ""
    assert quieter(facts(Y, 4, gradient="full_data")) == ""
    assert quieter(facts(Y, 4)) == "raise subsample_size, or take gradient='control_variate'"
    assert quieter(facts(Y, 4, gradient="control_variate")) == "raise subsample_size"
    kernel = fe.SGLD(on_pairs, step_size=0.01)
    draws = fe.sample(kernel, loader(), **SHORT)
    assert quieter(draws.attrs) == "raise the DataLoader's batch_size"


@pytest.mark.parametrize(
    ("size", "named"), [pytest.param(8, True, marks=pytest.mark.thorough), (None, False)]
)
def test_an_estimate_is_told_of_no_argument_that_it_has_not(size: int | None, named: bool) -> None:
    torch.manual_seed(0)
    network = fe.FlatNetwork(torch.nn.Linear(2, 1))
    found = fe.estimate_free_energy(
        network,
        (torch.randn(40, 2), torch.randn(40)),
        likelihood="normal",
        batch_size=size,
        step_size=0.15,  # four fifths of what is stable
        kernel=fe.SGLD,
        num_samples=20,
        warmup_steps=0,
        progress_bar=False,
    )
    table = fe.diagnose(found.draws, difference=1e-9).table.set_index("check")
    advice = " ".join(table["advice"])
    assert not table.loc["temperature", "passed"]
    assert not table.loc["gradient_noise", "passed"]
    assert ("batch_size" in advice) is named
    assert ("minibatches and step" in advice) is named
    for foreign in ("gradient=", "metric=", "initial_params", "subsample_size", "tolerance"):
        assert foreign not in advice


def test_a_length_nobody_can_run_is_no_advice() -> None:
    measured = {
        "sites": '{"w": [2]}',
        "gradient": "minibatch",
        "metric": "identity",
        "temperature": 1.0,
        "thinning": 4,
        "minibatches_of": "{}",
        "tuned_stiffest_curvature": [1e7],
        "tuned_slowest_curvature": [1.0],
        "tuned_gradient_noise": [0.0],
    }
    assert longer("warmup_steps", 900, measured).startswith("give at least warmup_steps=900, or a")
    told = longer("warmup_steps", 3_127_128_320, measured)
    assert "3127128320" not in told
    assert told.startswith("no run is that long: this sampler will not do here")
    assert "metric='dense'" in told
    assert "NUTS" in told
    # A draw is as many steps as the thinning says.
    assert "no run is that long" in longer("num_samples", MOST_STEPS / 2, measured)
    local = measured | {"localization": 1.0, "batch_size": 40, "num_data": 40}
    assert "localization" in longer("warmup_steps", 1e12, local)
    assert shorter_ways(local) == []  # an estimate has no metric to choose


def test_only_what_failed_is_named() -> None:
    assert mixing_notes(1.002, 900.0) == []
    (poor,) = mixing_notes(0.979, 12.0)
    assert "ESS 12" in poor
    assert "R-hat" not in poor
    (apart,) = mixing_notes(1.3, 900.0)
    assert "R-hat 1.300" in apart
    assert "ESS" not in apart
    (unknown,) = mixing_notes(float("nan"), float("nan"))
    assert "R-hat nan" in unknown


def test_a_temperature_that_is_no_number_is_neither_hot_nor_cold() -> None:
    draws = synthetic(np.random.default_rng(0))
    draws.sample_stats["stiff_temperature"].values[1, 3] = np.nan
    table = fe.diagnose(draws).table.set_index("check")
    assert not table.loc["stiff_temperature", "passed"]
    said = str(table.loc["stiff_temperature", "advice"])
    assert "not finite" in said
    assert "cold" not in said
    assert "hot" not in said


def test_draws_that_relax_slower_than_predicted_are_believed() -> None:
    """43 steps were predicted of the widest coordinate; the draws take some 400."""
    draws = synthetic(np.random.default_rng(1), correlation=np.exp(-1 / 400))
    draws.attrs["tuned_relaxation_steps"] = [43.0] * 4
    draws.attrs["warmup_steps"] = 500
    found = relaxation(read_run(draws))
    assert found.measured
    assert 200 < found.steps < 2000
    assert {"warmup_length", "run_length"} < set(fe.diagnose(draws).failures)


def test_a_prediction_that_the_draws_bear_out_stands() -> None:
    draws = synthetic(np.random.default_rng(1), num_draws=4000, correlation=np.exp(-1 / 43))
    draws.attrs["tuned_relaxation_steps"] = [43.0] * 4
    assert relaxation(read_run(draws)) == (43.0, False)


def test_draws_of_others_had_no_choice_of_a_metric() -> None:
    assert not has_dense_metric({"metric": "identity"})
    assert has_dense_metric({"metric": "identity", "sites": '{"w": [3]}'})
    assert not has_dense_metric({"metric": "identity", "sites": '{"w": [1]}'})
    assert not has_dense_metric({"metric": "dense", "sites": '{"w": [3]}'})
