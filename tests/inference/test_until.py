"""A run goes on until its draws are an answer, in constant memory, and says what it came to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_fe as fe
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.record.recorder import Recorder
from ppl_fe.inference.run.until import Until, Worst, worst_of
from ppl_fe.inference.step.step_function import Statistics
from ppl_fe.inference.targets import Targets


def normal() -> None:
    pyro.sample("w", dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1))


def line(x: Tensor, y: Tensor, size: int | None = None) -> None:
    slope = pyro.sample("slope", dist.Normal(x.new_zeros(2), 10.0).to_event(1))
    with pyro.plate("data", len(y), subsample_size=size):
        rows, targets = pyro.subsample(x, event_dim=1), pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Normal(rows @ slope, 0.5), obs=targets)


def test_a_plain_program_ends_in_an_answer_and_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    draws = fe.sample(normal)
    assert draws.attrs["sampler"] == "MALT"
    assert draws.attrs["target_missed"] == ""
    assert fe.diagnose(draws).passed
    shown = "".join(capsys.readouterr())
    assert "MALT: 4 chains of 1000 draws, " in shown
    assert "targets reached" in shown


def test_equal_seeds_give_equal_draws() -> None:
    first, second = (
        fe.sample(normal, target_ess=200.0, num_samples=250, progress_bar=False) for _ in range(2)
    )
    assert first.posterior.equals(second.posterior)


def test_draws_are_halved_and_thinned_until_they_are_enough() -> None:
    draws = fe.sample(
        fe.SGLD(normal, step_size=0.2), target_ess=300.0, num_samples=256, progress_bar=False
    )
    assert draws.attrs["thinning"] in (4, 8, 16, 32)
    assert draws.posterior.sizes["draw"] == 256
    assert draws.attrs["worst_ess"] >= 300
    assert draws.attrs["worst_r_hat"] <= 1.01


@pytest.mark.thorough
def test_a_plate_that_subsamples_is_sampled_by_minibatches() -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 2, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -2.0], dtype=torch.float64) + 0.5 * torch.randn(400)
    draws = fe.sample(line, x, y, 40, progress_bar=False)
    assert draws.attrs["sampler"] == "BAOAB"
    assert draws.attrs["gradient"] == "control_variate"
    precision = x.mT @ x / 0.25 + torch.eye(2) / 100
    exact = torch.linalg.solve(precision, x.mT @ y / 0.25)
    sd = torch.linalg.inv(precision).diagonal().sqrt()
    found = torch.tensor(draws.posterior["slope"].values)
    assert bool(((found.mean((0, 1)) - exact).abs() / sd < 0.15).all())
    assert bool((found.std((0, 1)) / sd - 1).abs().max() < 0.1)


def test_lengths_without_a_target_are_what_is_run() -> None:
    draws = fe.sample(fe.MALT(normal), num_samples=30, warmup_steps=40, progress_bar=False)
    assert dict(draws.posterior.sizes)["draw"] == 30
    assert "target_missed" not in draws.attrs
    assert draws.attrs["warmup_steps"] == 40


def test_a_budget_that_is_too_small_is_said() -> None:
    with pytest.warns(RuntimeWarning, match="not an answer yet.*max_steps=300 were taken"):
        draws = fe.sample(normal, max_steps=300, progress_bar=False)
    assert draws.attrs["num_gradients"] < 310


def test_a_budget_that_was_just_enough_is_no_shortfall() -> None:
    draws = fe.sample(normal, max_steps=1600, progress_bar=False)
    assert draws.posterior.sizes["draw"] < 1000
    assert draws.attrs["target_missed"] == ""


def test_a_run_that_would_not_be_done_in_time_ends_when_that_is_clear() -> None:
    until = Until(Targets(ess=400, max_steps=10_000))
    slow = np.cumsum(np.random.default_rng(0).standard_normal((4, 500)), 1)
    draws = {"posterior": {"w": slow}, "sample_stats": {"loss": slow, "lp": slow}}
    assert until.is_done(draws, 5000)
    assert "steps would be needed" in until.gave_up


def test_the_worst_scalar_is_named() -> None:
    generator = np.random.default_rng(0)
    good, apart = generator.standard_normal((2, 4, 300))
    apart[0] += 3
    worst: Worst = worst_of({"a": good, "b[1]": apart})
    assert worst.r_hat[1] == worst.ess[1] == "b[1]"
    assert worst.r_hat[0] > 1.1
    assert not worst.reaches(Targets())


def test_halving_averages_what_is_averaged() -> None:
    """Else draws before and after the thinning differ in their spread, and R-hat sees it."""
    density = Density(normal)
    recorder = Recorder(density, density.blocks, 2, 8, halves=True)
    for k in range(8):
        value = torch.full((2,), float(k), dtype=torch.float64)
        statistics = Statistics(torch.stack([value, value], -1))
        position = value[:, None].expand(2, 3)
        recorder.add(position, statistics, value, torch.stack([value, value], -1), value)
    recorder.halve()
    draws, _ = recorder.contents()
    assert draws["posterior"]["w"][0, :, 0].tolist() == [1, 3, 5, 7]
    assert draws["sample_stats"]["lp"][0].tolist() == [1, 3, 5, 7]
    assert draws["sample_stats"]["loss"][0].tolist() == [0.5, 2.5, 4.5, 6.5]
    tree = recorder.finish({}, {})
    means = tree["moments"].to_dataset()["w"].sel(moment="mean")
    assert means.values.tolist() == [4.0, 4.0, 4.0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target_ess": -1.0}, "target_ess must be a positive number"),
        ({"target_r_hat": 1.0}, "target_r_hat must be above 1"),
        ({"target_ess": 300.0, "num_samples": 100}, "target_ess=300 needs room.*got 400"),
        ({"max_steps": 0}, "max_steps must be an integer of at least 1"),
        ({"max_seconds": 0.0}, "max_seconds must be a positive number"),
        ({"target_ess": 10.0, "chain_method": "parallel"}, "needs a run of fixed length"),
    ],
)
def test_targets_out_of_range_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fe.sample(normal, progress_bar=False, **given)
