"""`sample`: the schema of its draws, seeds, thinning, starts, schedules, arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from torch import Tensor

import ppl_fe as fe
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.schedules import Polynomial

UNKNOWN: Any = "unknown"
Y = torch.linspace(-1.0, 2.0, 12)


def model(y: Tensor, size: int | None = None) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    sd = pyro.sample("sd", dist.LogNormal(0.0, 0.3))
    pyro.deterministic("sum", mean.sum())
    with pyro.plate("data", len(y), subsample_size=size):
        batch = pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Normal(mean.sum(), 2.0 + sd), obs=batch)


def draws(kernel: fe.Kernel | None = None, *data: Any, **changed: Any) -> xr.DataTree:
    arguments: dict[str, Any] = {
        "num_samples": 20,
        "warmup_steps": 10,
        "num_chains": 3,
        "compile": "eager",
        "progress_bar": False,
    }
    kernel = kernel or fe.BAOAB(model, step_size=0.05, friction=1.0)
    return fe.sample(kernel, *(data or (Y,)), **{**arguments, **changed})


def same(one: xr.DataTree, other: xr.DataTree) -> bool:
    groups = ("posterior", "sample_stats")
    return all(one[group].to_dataset().equals(other[group].to_dataset()) for group in groups)


def test_the_schema_is_arviz_s() -> None:
    tree = draws(thinning=2, seed=5)
    assert set(tree.children) == {"posterior", "sample_stats", "observed_data", "moments"}
    sites = {"mean": ("chain", "draw", "mean_dim_0"), "sd": ("chain", "draw")}
    posterior = tree["posterior"].to_dataset()
    assert {str(k): v.dims for k, v in posterior.data_vars.items()} == {
        **sites,
        "sum": ("chain", "draw"),
    }
    assert dict(posterior.sizes) == {"chain": 3, "draw": 20, "mean_dim_0": 2}
    statistics = dict(tree["sample_stats"].to_dataset().data_vars)
    by_block = statistics.pop("block_temperature")
    assert by_block.dims == ("chain", "draw", "block")
    assert by_block["block"].values.tolist() == ["mean", "sd"]
    assert set(statistics) == {
        "lp",
        "loss",
        "gradient_norm",
        "step_size",
        "configurational_temperature",
        "stiff_temperature",
        "kinetic_temperature",
    }
    for values in statistics.values():
        assert values.dims == ("chain", "draw")
    assert (posterior["sd"] > 0).all()
    np.testing.assert_allclose(posterior["sum"], posterior["mean"].sum("mean_dim_0"), rtol=1e-5)
    expected = {
        "inference_library": "ppl_fe",
        "sampler": "BAOAB",
        "step_size": 0.05,
        "friction": 1.0,
        "temperature": 1.0,
        "gradient": "minibatch",
        "num_samples": 20,
        "warmup_steps": 10,
        "thinning": 2,
        "num_chains": 3,
        "num_data": 12,
        "seed": 5,
        "compile": "eager",
        "interrupted": 0,
        "failed_chains": "{}",
        "chain_method": "vectorized",
    }
    for place in (tree, tree["posterior"], tree["sample_stats"]):
        assert expected.items() <= place.attrs.items()


def test_statistics_belong_to_the_draw_they_stand_beside() -> None:
    tree = draws()
    density = Density(model, (Y,))
    mean, sd = (torch.as_tensor(tree["posterior"][name].values) for name in ("mean", "sd"))
    positions = torch.cat([mean, sd.log()[..., None]], -1)
    statistics = tree["sample_stats"].to_dataset()
    for chain, draw in ((0, 0), (2, 7), (1, 19)):
        gradient, terms = density.batched_gradient(
            density, positions[chain, draw][None], (), (), density.tensors
        )
        found = {
            name: float(statistics[name][chain, draw]) for name in ("lp", "loss", "gradient_norm")
        }
        assert found["lp"] == pytest.approx(terms.log_density.item(), rel=1e-4)
        assert found["loss"] == pytest.approx(-terms.log_likelihood.item() / 12, rel=1e-4)
        assert found["gradient_norm"] == pytest.approx(gradient.norm().item(), rel=1e-3)


@pytest.mark.parametrize("size", [pytest.param(None, marks=pytest.mark.thorough), 4])
def test_equal_seeds_give_equal_draws_and_others_do_not(size: int | None) -> None:
    torch.manual_seed(0)
    one = draws(None, Y, size, num_samples=8, seed=1)
    torch.manual_seed(1)  # the global state plays no part
    assert same(one, draws(None, Y, size, num_samples=8, seed=1))
    other = draws(None, Y, size, num_samples=8, seed=2)
    assert not np.isclose(one.posterior["sum"], other.posterior["sum"]).all(axis=1).any()
    chains = one.posterior["sum"].values
    assert len(np.unique(chains[:, -1])) == 3


def test_thinning_keeps_every_kth_draw_and_the_mean_loss_between() -> None:
    every, thinned = draws(num_samples=20), draws(num_samples=4, thinning=5)
    np.testing.assert_array_equal(thinned.posterior["mean"], every.posterior["mean"][:, 4::5])
    for name in ("lp", "gradient_norm"):
        np.testing.assert_array_equal(thinned.sample_stats[name], every.sample_stats[name][:, 4::5])
    losses = every.sample_stats["loss"].values.reshape(3, 4, 5).mean(-1)
    np.testing.assert_allclose(thinned.sample_stats["loss"], losses, rtol=1e-5)


def test_chains_start_where_they_are_told() -> None:
    start = {"mean": torch.arange(6.0).reshape(3, 2), "sd": torch.tensor([0.0, 0.1, -0.1])}
    tree = draws(num_samples=1, warmup_steps=0, initial_params=start)
    np.testing.assert_array_equal(tree.posterior["mean"][:, 0], start["mean"])
    np.testing.assert_allclose(tree.posterior["sd"][:, 0], start["sd"].exp())


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"mean": torch.zeros(3, 2)}, r"\['mean', 'sd'\], got \['mean'\]"),
        ({"mean": torch.zeros(3, 2), "sd": torch.zeros(3), "x": torch.zeros(3)}, "'x'"),
        ({"mean": torch.zeros(3), "sd": torch.zeros(3)}, r"initial_params\['mean'\] must have"),
        ({"mean": torch.zeros(2, 2), "sd": torch.zeros(2)}, "2 chains, num_chains is 3"),
    ],
)
def test_bad_starts_are_refused(start: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draws(initial_params=start)


@pytest.mark.parametrize("kernel", [fe.SGLD, fe.BAOAB])
def test_a_schedule_is_followed_and_recorded(kernel: type[fe.Kernel]) -> None:
    schedule = Polynomial(0.05, offset=5.0)
    tree = draws(kernel(model, step_size=schedule), num_samples=6, thinning=3)
    expected = [schedule(10 + 3 * draw + 2) for draw in range(6)]
    np.testing.assert_allclose(tree.sample_stats["step_size"], [expected] * 3, rtol=1e-6)


def test_an_automatic_step_is_fixed_when_sampling_starts() -> None:
    tree = draws(fe.BAOAB(model), warmup_steps=100)
    steps = tree.sample_stats["step_size"].values
    assert len(np.unique(steps)) == 1
    np.testing.assert_allclose(tree.attrs["tuned_step_size"], steps[:, 0])
    assert all(excess <= 0.05 + 1e-6 for excess in tree.attrs["tuned_excess_temperature"])


def test_full_data_gradients_have_no_minibatch_noise() -> None:
    def kernel(gradient: Any) -> fe.Kernel:
        return fe.SGLD(model, step_size=0.05, gradient=gradient)

    exact = draws(kernel("minibatch"), Y)
    covered = draws(kernel("full_data"), Y, 5)
    np.testing.assert_allclose(covered.posterior["mean"], exact.posterior["mean"], atol=1e-4)
    noisy = draws(kernel("minibatch"), Y, 5)
    assert np.abs(noisy.posterior["mean"] - exact.posterior["mean"]).max() > 0.01


def test_the_progress_bar_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with_bar = draws(progress_bar=True, num_samples=60)
    assert "step" in capsys.readouterr().err
    assert same(with_bar, draws(num_samples=60))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_samples": 0}, "num_samples must be an integer of at least 1, got 0"),
        ({"num_samples": 10.0}, "num_samples must be an integer"),
        ({"warmup_steps": -1}, "warmup_steps must be an integer of at least 0"),
        ({"thinning": 0}, "thinning must be an integer of at least 1"),
        ({"seed": None}, "seed must be an integer of at least 0, got None"),
        ({"num_chains": 0}, "num_chains must be a positive integer, got 0"),
        ({"num_chains": True}, "num_chains must be a positive integer"),
        ({"chain_method": "threads"}, "chain_method must be one of .*'threads'"),
        ({"compile": "jit"}, "compile must be one of .*'jit'"),
    ],
)
def test_bad_arguments_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draws(**changed)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fe.SGLD(model, step_size=0.0), ValueError, "step_size must be a positive"),
        (
            lambda: fe.SGLD(model, step_size=UNKNOWN),
            TypeError,
            "step_size must be a positive",
        ),
        (lambda: fe.SGLD(model, temperature=-1.0), ValueError, "temperature must be a positive"),
        (lambda: fe.SGLD(model, tolerance=float("nan")), ValueError, "tolerance must be"),
        (
            lambda: fe.SGLD(model, gradient=UNKNOWN),
            ValueError,
            "gradient must be one of.*'unknown'",
        ),
        (lambda: fe.SGLD(model, friction=1.0), TypeError, "has no argument 'friction'"),
        (lambda: fe.BAOAB(model, friction=-1.0), ValueError, "friction must be a positive"),
    ],
)
def test_bad_kernels_are_refused(
    make: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()
