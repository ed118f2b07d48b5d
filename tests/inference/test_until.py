"""A run goes on until its draws are an answer, in constant memory, and says what it came to."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import ppl_fe as fe
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.record import recorder as recorder_module
from ppl_fe.inference.record.recorder import Recorder
from ppl_fe.inference.run.loop import Sampling
from ppl_fe.inference.run.until import MOST_NAMED, Until, Worst, named_scalars, worst_of
from ppl_fe.inference.run_plan import RunLength, RunPlan, Target
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
        fe.sample(normal, target_ess=50.0, num_samples=100, progress_bar=False) for _ in range(2)
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


def test_a_scalar_that_is_not_finite_is_the_worst_and_not_left_out() -> None:
    generator = np.random.default_rng(0)
    fine, gone = generator.standard_normal((2, 4, 500))
    gone[2] = math.nan
    draws = {"w": fine, "tau": gone, "still": np.ones((4, 500))}
    scalars = named_scalars({"posterior": draws, "sample_stats": {"loss": fine}})
    assert list(scalars) == ["w", "tau", "loss"]
    worst = worst_of(scalars)
    assert worst.r_hat == (math.inf, "tau")
    assert worst.ess == (0.0, "tau")
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


def test_time_is_up_when_the_seconds_are_over() -> None:
    until = Until(Targets(max_seconds=1e-9))
    assert until.out_of_time(0)
    assert until.gave_up == "max_seconds=1e-09 were over"
    assert not Until(Targets(max_seconds=1e9)).out_of_time(0)


def test_large_sites_are_judged_by_what_hangs_on_them() -> None:
    generator = np.random.default_rng(1)
    values = {
        "large": generator.standard_normal((2, 5, MOST_NAMED + 1)),
        "small": generator.standard_normal((2, 5, 2)),
    }
    stats = {"loss": generator.standard_normal((2, 5)), "lp": generator.standard_normal((2, 5))}
    named = named_scalars({"posterior": values, "sample_stats": stats})
    assert {"small[0]", "small[1]"} < set(named)
    assert not any(name.startswith("large") for name in named)


def test_a_warm_up_is_repeated_until_it_is_five_relaxation_times() -> None:
    """The slowest direction is a thousand times as slack as the stiffest."""

    def uneven() -> None:
        sd = torch.tensor([1.0, 30.0], dtype=torch.float64)
        pyro.sample("w", dist.Normal(torch.zeros_like(sd), sd).to_event(1))

    kernel = fe.BAOAB(uneven, metric="identity")
    plan = RunPlan(
        RunLength(60, warmup_steps=10),
        until=Targets(ess=50.0, max_steps=2000),
        num_chains=2,
        compile="traced",
    )
    start = torch.tensor([[1.0, 60.0], [-1.0, -60.0]], dtype=torch.float64)
    sampling = Sampling(kernel, Target(Density(uneven), start=start), plan)
    sampling.begin()
    relaxation = float(sampling.report["relaxation_steps"].max())
    done, most = sampling.warm_up.num_steps, 1000
    assert done > 10
    assert done >= 5 * relaxation or 2 * done > most
    assert sampling.thinning == max(1, min(math.ceil(relaxation / 2), most // 60))


def test_a_program_with_a_loader_is_sampled_by_its_minibatches() -> None:
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(2))
    loader = DataLoader(TensorDataset(x, x[:, 0]), batch_size=20)

    def of_batches(x: Tensor, y: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        with pyro.plate("data", 60, subsample_size=len(y)):
            pyro.sample("y", dist.Normal(x @ slope, 1.0), obs=y)

    with pytest.warns(RuntimeWarning, match="shorter than five relaxation times"):
        draws = fe.sample(
            of_batches, loader, num_samples=3, warmup_steps=2, num_chains=2, compile="eager",
            progress_bar=False,
        )  # fmt: skip
    assert draws.attrs["sampler"] == "BAOAB"


def test_what_is_no_program_is_refused() -> None:
    wrong: Any = "BAOAB"
    with pytest.raises(TypeError, match=r"kernel must be a Pyro program or .*fe\.BAOAB.*, got str"):
        fe.sample(wrong)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
def test_moments_of_draws_let_go_are_those_of_what_is_left(
    kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of coordinates too many to be kept they are those of the draws that follow."""
    if not kept:
        monkeypatch.setattr(recorder_module, "LARGEST_KEPT", 2 * 8 * 2)

    def pair() -> None:  # of which either site alone is small enough
        for name in ("a", "b"):
            pyro.sample(name, dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))

    density = Density(pair)

    def add(recorder: Recorder, numbers: range) -> None:
        for k in numbers:
            value = torch.full((2,), float(k), dtype=torch.float64)
            statistics = Statistics(torch.stack([value, value], -1))
            position = value[:, None].expand(2, 4)
            recorder.add(position, statistics, value, torch.stack([value, value], -1), value)

    def made() -> Recorder:
        return Recorder(density, density.blocks, 2, 8, halves=True)

    recorder = made()
    add(recorder, range(8))
    recorder.halve()
    again = made()
    state = {name: value.clone() for name, value in recorder.state().items()}
    again.restore(recorder.contents()[0], state)
    for one in (recorder, again):
        add(one, range(10, 14))
        moments = one.finish({}, {})["moments"].to_dataset()["a"].sel(moment="mean")
        left = [1, 3, 5, 7, 10, 11, 12, 13] if kept else [10, 11, 12, 13]
        np.testing.assert_allclose(moments.values, np.mean(left), rtol=1e-12)
