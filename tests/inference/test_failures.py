"""Steps that are too large, gradients that are not finite: what is said of which chain."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from cases.runs import quartic
from torch import Tensor, nn

import ppl_fe as fe

# The largest curvature of the target; SGLD, PSGLD (with a metric of one), BAOAB and SGNHT are
# stable up to 4/a, SGHMC up to 4(2 − α)/a.
CURVATURE = torch.tensor([4.0, 25.0])
LIMIT = 4 / 25


def gaussian() -> None:
    pyro.sample("w", dist.Normal(torch.zeros(2), CURVATURE.rsqrt()).to_event(1))


def draws(kernel: fe.Kernel, **changed: Any) -> xr.DataTree:
    options: dict[str, Any] = {
        "num_samples": 40,
        "warmup_steps": 60,
        "num_chains": 2,
        "compile": "eager",
        "progress_bar": False,
    }
    return fe.sample(kernel, **{**options, **changed})


def named_step(error: BaseException) -> float:
    found = re.search(r"allows steps up to ([\d.e+-]+?)[:;]", str(error))
    assert found, error
    return float(found[1])


SAMPLERS: dict[str, tuple[type[fe.Kernel], dict[str, Any], float]] = {
    "SGLD": (fe.SGLD, {}, LIMIT),
    "PSGLD": (fe.PSGLD, {}, LIMIT),
    "SGHMC": (fe.SGHMC, {"friction": 0.5}, 1.5 * LIMIT),
    "SGHMC at full friction": (fe.SGHMC, {"friction": 1.0}, LIMIT),
    "SGNHT": (fe.SGNHT, {"friction": 1.0}, LIMIT),
    "BAOAB": (fe.BAOAB, {"friction": 1.0}, LIMIT),
}


@pytest.mark.parametrize("times", [pytest.param(4.0, marks=pytest.mark.thorough), 1e4])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_diverging_step_is_told_the_largest_stable_one(name: str, times: float) -> None:
    kind, settings, limit = SAMPLERS[name]
    with pytest.raises(FloatingPointError, match=r"of w was not finite at .*step \d+; ") as caught:
        draws(kind(gaussian, step_size=times * limit, **settings))
    assert named_step(caught.value) == pytest.approx(limit, rel=0.05)


@pytest.mark.parametrize(
    "name",
    [
        name if name == "SGHMC" else pytest.param(name, marks=pytest.mark.thorough)
        for name in SAMPLERS
        if name != "PSGLD"
    ],
)
def test_nine_tenths_of_it_runs(name: str) -> None:
    kind, settings, limit = SAMPLERS[name]
    tree = draws(kind(gaussian, step_size=0.9 * limit, **settings), num_samples=200)
    assert np.abs(tree.posterior["w"].values).max() < 10


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "PSGLD"])
@pytest.mark.parametrize(
    ("times", "warmup"),
    [
        (1.03, 12),  # unstable, and hardly grown yet
        (1.5, 24),  # at 1e7 and beyond, where no curvature can be measured any more
    ],
)
def test_an_unstable_chain_that_is_still_finite_is_found_when_warm_up_ends(
    name: str, times: float, warmup: int
) -> None:
    kind, settings, limit = SAMPLERS[name]
    with pytest.raises(FloatingPointError, match=r"step_size=.* is unstable: .* is 25") as caught:
        draws(kind(gaussian, step_size=times * limit, **settings), warmup_steps=warmup)
    assert named_step(caught.value) == pytest.approx(limit, rel=0.05)


def two_sites() -> None:
    """The slope of b overflows beyond 1e3; that of a and c never does."""
    pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    pyro.sample("c", dist.LogNormal(0.0, 1.0))
    pyro.factor("bad", -((b / 1e3) ** 40).sum())


@pytest.mark.parametrize(("warmup", "when"), [(10, "warm-up step 0"), (0, "step 0")])
def test_the_site_chain_and_step_are_named(warmup: int, when: str) -> None:
    start = {
        "a": torch.zeros(3),
        "b": torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 1e6]]),
        "c": torch.zeros(3),
    }
    kernel = fe.SGLD(two_sites, step_size=0.1)
    with pytest.warns(
        RuntimeWarning, match=rf"^left out: chain 2, the gradient of b was not finite at {when}$"
    ):
        tree = draws(kernel, initial_params=start, num_chains=3, warmup_steps=warmup)
    assert tree.posterior.chain.values.tolist() == [0, 1]
    reason = f"the gradient of b was not finite at {when}"
    assert json.loads(tree.attrs["failed_chains"]) == {"2": reason}


@pytest.mark.parametrize("warmup", [10, 5])
def test_the_step_is_the_first_that_failed(warmup: int) -> None:
    """Chain 0 doubles until its slope is infinite, beyond 3000; chain 1 runs the other way."""

    def doubling() -> None:
        b = pyro.sample("b", dist.Normal(0.0, 1e9))
        pyro.factor("pull", b**2 / 2)
        pyro.factor("bad", torch.where(b > 3000.0, torch.inf, 0.0) * b)

    start = {"b": torch.tensor([1.0, -1.0])}
    kernel = fe.SGLD(doubling, step_size=2.0, temperature=0.0)
    # 2^12 = 4096 is the first beyond 3000: the gradient of step 12, counted from 0, is infinite.
    when = "step 2" if warmup == 10 else "step 7"
    with pytest.warns(RuntimeWarning, match=f"chain 0, .* of b was not finite at {when}$"):
        draws(kernel, initial_params=start, warmup_steps=warmup, num_samples=20)


class Wall(nn.Module):
    """The slope of its bias is NaN beyond 0.1, which no value and no other weight shows."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        wall: Tensor = self.bias * torch.where(self.bias.abs() <= 0.1, 0.0, torch.inf)
        return x + wall.nan_to_num(0.0, 0.0, 0.0)


def test_a_network_s_layer_is_named() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 3), Wall(), nn.Linear(3, 1))
    network = fe.FlatNetwork(module)
    inputs = torch.randn(20, 2)
    with pytest.raises(
        FloatingPointError,
        match=r"chain 0, the gradient of 1\.bias was not finite at .*; check the data and the st",
    ):
        fe.estimate_free_energy(
            network,
            (inputs, torch.zeros(20, 1)),
            likelihood="normal",
            step_size=0.01,
            num_samples=20,
            warmup_steps=20,
            num_chains=2,
            compile="eager",
            progress_bar=False,
        )


def test_a_short_warm_up_is_told_once_with_the_length_to_give() -> None:
    """SGLD relaxes in 2/(εa) steps along the slowest direction, a = 4."""
    with pytest.warns(RuntimeWarning, match="is shorter than five relaxation times") as told:
        tree = draws(fe.SGLD(gaussian), warmup_steps=40, compile="traced")
    assert len(told) == 1
    wanted = int(str(told[0].message).split("=")[-1])
    relaxation = 2 / (tree.attrs["tuned_step_size"][0] * tree.attrs["tuned_slowest_curvature"][0])
    assert wanted == pytest.approx(5 * relaxation, abs=1.5)
    assert wanted > 40
    draws(fe.SGLD(gaussian), warmup_steps=20 * wanted, compile="traced")  # no warning
    draws(fe.SGLD(gaussian, step_size=1e-4), warmup_steps=5)  # by hand: no relaxation is known


def test_a_run_that_fails_among_its_draws_leaves_nothing_to_go_on_with(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    with pytest.raises(fe.DivergedError, match=r"every chain became non-finite at step size 1.6"):
        draws(fe.SGLD(gaussian, step_size=10 * LIMIT), warmup_steps=0, save_to=path)
    assert not list(tmp_path.glob("*.resume"))


def test_a_step_that_only_the_start_allows_is_told_so() -> None:
    """Beyond |x| = 1.2 a step of the quartic's slope overshoots ever farther."""
    start = {"x": torch.tensor([0.0, 0.1])}
    with pytest.raises(fe.DivergedError, match=r"start would allow a step of .* larger curvatures"):
        draws(
            fe.SGLD(quartic, step_size=2.0),
            initial_params=start,
            warmup_steps=0,
            num_samples=2000,
        )
