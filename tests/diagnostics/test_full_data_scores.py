"""Scores of draws on all the data against Pyro's own potential; `stein_check` of real runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import ppl_fe as fe
from ppl_fe.diagnostics import SteinTest, stein_check
from ppl_fe.diagnostics.scores import full_data_scores, scored_draws, thinned
from ppl_fe.diagnostics.stein import stein_p_value

Y = torch.linspace(-1.0, 2.0, 11, dtype=torch.float64)
DOUBLE = partial(torch.tensor, dtype=torch.float64)


def constrained(y: Tensor, size: int | None = None) -> None:
    """A positive site, an interval, a simplex and a real vector; 11 data in batches of 4."""
    scale = pyro.sample("scale", dist.Gamma(DOUBLE(3.0), DOUBLE(2.0)))
    share = pyro.sample("share", dist.Beta(DOUBLE(2.0), DOUBLE(3.0)))
    weights = pyro.sample("weights", dist.Dirichlet(DOUBLE([3.0, 4.0, 5.0])))
    mean = pyro.sample("mean", dist.Normal(torch.zeros(2, dtype=y.dtype), 1.0).to_event(1))
    pyro.deterministic("total", mean.sum() + share)
    with pyro.plate("data", len(y), subsample_size=size):
        batch = pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Normal(mean.sum() * share + weights[0], scale), obs=batch)


def regression(y: Tensor, *, shift: float = 0.0) -> None:
    mean = pyro.sample("mean", dist.Normal(shift, 1.0))
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, scale), obs=y)


def run(model: Any, *args: Any, num_samples: int = 30, **how: Any) -> xr.DataTree:
    """Draws near enough to the target to be finite; what is tested here is what is made of them."""
    own = isinstance(model, fe.Kernel)
    kernel = model if own else fe.BAOAB(model, step_size=1e-3, friction=1.0)
    settings = {"warmup_steps": 20, "compile": "eager", "progress_bar": False, **how}
    return fe.sample(kernel, *args, num_samples=num_samples, **settings)


def test_scores_are_the_slope_of_pyro_s_own_potential() -> None:
    kernel = fe.BAOAB(constrained, step_size=1e-3, friction=1.0)
    draws = run(kernel, Y, 4, num_samples=3)
    found = scored_draws(kernel, draws, (Y, 4))
    _, potential, transforms, _ = initialize_model(constrained, (Y,))
    names = ["scale", "share", "weights", "mean"]
    for chain in range(4):
        for draw in range(3):
            sites = {}
            for name in names:
                value = torch.as_tensor(draws.posterior[name].values[chain, draw])
                raw = transforms[name](value) if name in transforms else value
                sites[name] = raw.clone().requires_grad_()
            potential(sites).backward()
            slopes = [site.grad for site in sites.values() if site.grad is not None]
            slope = torch.cat([own.reshape(-1) for own in slopes])
            torch.testing.assert_close(found.scores[chain, draw], -slope, rtol=1e-6, atol=1e-6)
            raw = torch.cat([sites[name].detach().reshape(-1) for name in names])
            torch.testing.assert_close(found.positions[chain, draw], raw)
    assert full_data_scores(constrained, draws, Y, size=None).equal(
        full_data_scores(constrained, draws, Y)
    )


def test_a_program_with_an_if_runs_chain_after_chain_without_a_warning() -> None:
    def branching(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        scale = 1.0 if mean.item() > 0 else 2.0
        pyro.sample("y", dist.Normal(mean, scale).expand([len(y)]).to_event(1), obs=y)

    y = torch.ones(3)
    draws = run(
        fe.BAOAB(branching, step_size=0.1, friction=1.0),
        y,
        num_samples=5,
        chain_method="sequential",
    )
    mean = torch.as_tensor(draws.posterior["mean"].values)
    expected = -mean + 3 * (1 - mean) / torch.where(mean > 0, 1.0, 4.0)
    found = full_data_scores(branching, draws, y)
    torch.testing.assert_close(found[..., 0], expected, rtol=1e-4, atol=1e-5)


def test_thinning_is_even_and_keeps_the_last() -> None:
    draws = run(regression, torch.ones(5), num_samples=30)
    assert list(thinned(draws, 40).posterior["draw"].values) == list(range(2, 30, 3))
    assert list(thinned(draws, 1000).posterior["draw"].values) == list(range(30))
    few = thinned(draws, 2).posterior
    assert (list(few["chain"].values), list(few["draw"].values)) == ([1, 3], [29])
    assert thinned(draws, 40).attrs == draws.attrs


def test_a_run_is_held_against_its_own_target_and_temperature() -> None:
    y = torch.linspace(-1.0, 3.0, 30)
    kernel = fe.BAOAB(regression, step_size=0.01, friction=5.0, temperature=2.0)
    start = {name: torch.zeros(4) for name in ("mean", "scale")}
    how = {"warmup_steps": 500, "thinning": 20, "compile": "traced", "initial_params": start}
    draws = run(kernel, y, num_samples=200, **how)
    healthy = stein_check(draws, kernel, y)
    assert isinstance(healthy, SteinTest)
    assert healthy.p_value > 0.001  # a thousandth of all seeds
    assert healthy.num_draws == 400
    fewer = stein_check(draws, regression, (y,), most_draws=100)
    assert fewer.num_draws == 100
    assert stein_check(draws, regression, {"y": y}, most_draws=100) == fewer
    # Other data; and draws that pretend to be of temperature 1.
    assert stein_check(draws, regression, (y + 2,), most_draws=100).p_value == 0.001
    draws.attrs["temperature"] = 1.0
    assert stein_check(draws, regression, (y,)).p_value <= 0.01
    draws.attrs["temperature"] = 0.0
    with pytest.raises(ValueError, match="temperature 0"):
        stein_check(draws, regression, (y,))


def test_a_diagnosis_holds_draws_against_model_and_data() -> None:
    y = torch.ones(30) + torch.linspace(-2.0, 2.0, 30)
    start = {name: torch.zeros(4) for name in ("mean", "scale")}
    how = {"warmup_steps": 500, "thinning": 20, "compile": "traced", "initial_params": start}
    kernel = fe.BAOAB(regression, step_size=0.01, friction=5.0)
    draws = run(kernel, y, num_samples=50, **how)

    def p_value(data: Any) -> float:
        checks = fe.diagnose(draws, model=kernel, data=data).checks
        return next(check for check in checks if check.name == "stein_p_value").value

    assert p_value((y,)) == stein_check(draws, kernel, y).p_value > 0.001
    assert "stein_p_value" in fe.diagnose(draws, model=regression, data={"y": y + 2}).failures
    assert all(check.name != "stein_p_value" for check in fe.diagnose(draws).checks)
    with pytest.raises(ValueError, match="data without model"):
        fe.diagnose(draws, data=y)
    with pytest.raises(ValueError, match="stand for one target"):
        stein_p_value(draws, kernel, y, 0)


def test_data_that_are_not_the_arguments_are_refused() -> None:
    def line(x: Tensor, y: Tensor, *, scale: float = 1.0) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(slope * x, scale).to_event(1), obs=y)

    x, y = torch.ones(5), torch.zeros(5)
    kernel = fe.BAOAB(line, step_size=1e-3, friction=1.0)
    draws = run(kernel, x, y, num_samples=12)
    takes = r"data must be the arguments \(x, y, \*, scale=1.0\) of the model's program "
    for model in (kernel, line):
        with pytest.raises(TypeError, match=takes + r"\(missing .* 'y'\): a tuple of .* a Tensor$"):
            fe.diagnose(draws, model=model, data=x)
    for data, said in [
        ([x, y], r"\(missing .* got a list of 2$"),
        ((x, y, y), r"\(too many positional arguments\).* got a tuple of 3$"),
        ({"x": x, "z": y}, r"\(missing a required argument: 'y'\).* got a dict of 2$"),
    ]:
        with pytest.raises(TypeError, match=takes + said):
            fe.diagnose(draws, model=line, data=data)
    arrays = fe.diagnose(draws, model=line, data=(x.numpy(), y)).table
    assert arrays.equals(fe.diagnose(draws, model=line, data=(x, y)).table)


def other_name(y: Tensor) -> None:
    pyro.sample("w", dist.Normal(y.mean(), 1.0))


def other_shape(y: Tensor) -> None:
    pyro.sample("mean", dist.Normal(y.mean(), 1.0).expand([2]).to_event(1))


def other_support(y: Tensor) -> None:
    pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.sample("scale", dist.Uniform(0.0, 1e-6 * y.sum()))


def nested(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.HalfNormal(1.0))
    pyro.sample("scale", dist.Uniform(0.0, mean))
    pyro.sample("y", dist.Normal(mean, 1.0).expand([len(y)]).to_event(1), obs=y)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (other_name, "no site 'w' of the model but"),
        (other_shape, r"'mean' has shape \(\), in the model it is \(2,\)"),
        (other_support, "'scale' has draws on the edge|does not give back the draws"),
    ],
)
def test_draws_of_another_model_are_refused(model: Callable[..., None], message: str) -> None:
    y = torch.ones(5)
    draws = run(regression, y, num_samples=5)
    with pytest.raises(ValueError, match=message):
        full_data_scores(model, draws, y)


def test_a_support_that_depends_on_another_site_is_refused() -> None:
    y = torch.ones(5)
    draws = run(nested, y, num_samples=5)
    with pytest.raises(ValueError, match="support depends on another site"):
        full_data_scores(nested, draws, y)


def test_other_arguments_show_in_what_the_model_computes() -> None:
    draws = run(constrained, Y, 4, num_samples=3)

    def again(y: Tensor) -> None:
        with pyro.poutine.block(hide=["total"]):
            constrained(y)
        pyro.deterministic("total", DOUBLE(5.0))

    with pytest.raises(ValueError, match="does not give back the draws of site 'total'"):
        full_data_scores(again, draws, Y)


def test_rounded_draws_loaders_and_bare_trees_are_refused() -> None:
    y = torch.ones(5)
    draws = run(regression, y, num_samples=5)
    with pytest.raises(TypeError, match="not as a DataLoader"):
        full_data_scores(regression, draws, DataLoader(TensorDataset(y)))
    draws.posterior["scale"].values[1, 2] = 0.0
    with pytest.raises(ValueError, match="'scale' has draws on the edge of its support"):
        full_data_scores(regression, draws, y)
    draws.posterior["scale"].values[1, 2] = 1e-30
    with pytest.raises(ValueError, match="chain 1, draw 2 is not finite"):
        full_data_scores(regression, draws, y)
    with pytest.raises(ValueError, match="no group 'posterior'"):
        full_data_scores(regression, xr.DataTree(), y)
