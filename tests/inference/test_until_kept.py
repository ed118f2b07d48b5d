"""A run until its targets is stored, too, and gone on with bit for bit, also after draws went."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from cases.killed import killed_at
from cases.stored_runs import crashing_after, gaussian, run, stopping_after
from torch import Tensor

import ppl_fe as fe
from ppl_fe.inference.record import recorder as draws_module

UNTIL: dict[str, Any] = {"num_samples": 24, "target_ess": 20.0, "target_r_hat": 1.3}
KERNELS: dict[str, Any] = {
    "fixed step": (fe.SGLD(gaussian, step_size=0.8), {"warmup_steps": 3}),
    "automatic": (fe.BAOAB(gaussian), {"warmup_steps": 20}),
    "trajectories": (fe.MALT(gaussian), {"target_ess": 24.0}),
    "preconditioned": (fe.PSGLD(gaussian), {"warmup_steps": 20}),
}
TIMES = {"seconds", "sampling_time"}


@pytest.fixture(autouse=True)
def _blocks_of_four_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws_module, "BLOCK_VALUES", 4 * 2 * 2)


def sample(name: str, path: Path | None = None, **more: Any) -> xr.DataTree:
    kernel, own = KERNELS[name]
    tree: xr.DataTree = run(path, kernel, **{**UNTIL, **own, **more})
    return tree


@cache
def whole_of(name: str) -> xr.DataTree:
    return sample(name)


def assert_same(one: xr.DataTree, other: xr.DataTree) -> None:
    assert set(one.children) == set(other.children)
    for group in one.children:
        first, second = (tree[group].to_dataset().drop_attrs() for tree in (one, other))
        xr.testing.assert_identical(first, second)
    attrs = [{k: repr(v) for k, v in t.attrs.items() if k not in TIMES} for t in (one, other)]
    assert attrs[0] == attrs[1]


def assert_gone_on_with(name: str, path: Path) -> None:
    whole, resumed = whole_of(name), sample(name, path, resume=True)
    assert_same(resumed, whole)
    assert_same(xr.open_datatree(path, engine="zarr").load(), whole)
    assert_same(sample(name, path, resume=True), whole)
    assert list(path.parent.iterdir()) == [path]


def test_draws_are_let_go_in_this_run_more_than_once() -> None:
    attrs = whole_of("fixed step").attrs
    assert attrs["thinning"] >= 4
    assert not attrs["target_missed"]


@pytest.mark.parametrize(
    "stops", [(3 + 30,), pytest.param((9, 80, 50), marks=pytest.mark.thorough)]
)
def test_stopped_and_gone_on_with(stops: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    for number, steps in enumerate(stops):
        with stopping_after(steps), pytest.warns(RuntimeWarning, match="resume=True goes on"):
            sample("fixed step", path, resume=number > 0)
    assert_gone_on_with("fixed step", path)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name == "preconditioned"))
        for name in KERNELS
        if name != "fixed step"
    ],
)
@pytest.mark.parametrize(
    "share",
    [pytest.param(0.02, marks=pytest.mark.slow), pytest.param(0.6, marks=pytest.mark.thorough)],
)
def test_what_was_found_in_warm_up_is_kept(name: str, share: float, tmp_path: Path) -> None:
    path, attrs = tmp_path / "run.zarr", whole_of(name).attrs
    drawing = attrs["num_samples"] * attrs["thinning"]
    with crashing_after(int(attrs["warmup_steps"] + share * drawing)):
        sample(name, path)
    assert_gone_on_with(name, path)


@pytest.mark.slow
def test_killed_at_any_operation(tmp_path: Path) -> None:
    operation = 0
    while True:
        folder = tmp_path / str(operation)
        folder.mkdir()
        path = folder / "run.zarr"
        if not killed_at(operation, folder, partial(sample, "fixed step", path)):
            break
        if (folder / "run.zarr.resume").exists():
            assert_gone_on_with("fixed step", path)
        operation += 3
    assert operation > 200


def test_without_lengths_a_stored_run_ends_by_its_targets(tmp_path: Path) -> None:
    draws = fe.sample(
        partial(gaussian, 1),
        target_ess=40.0,
        num_samples=50,
        progress_bar=False,
        save_to=tmp_path / "run.zarr",
    )
    assert draws.attrs["until"]
    assert draws.attrs["worst_ess"] >= 40


X = torch.randn(60, 2, generator=torch.Generator().manual_seed(5))
Y = X @ torch.tensor([1.0, -1.0])


def tiny() -> fe.FlatNetwork:
    module = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, -1.0]]))
    return fe.FlatNetwork(module)


def noise(output: Tensor, targets: Tensor) -> object:
    return pyro.sample("y", dist.Normal(output[:, 0], 0.5), obs=targets)


def estimate(**more: Any) -> fe.FreeEnergyEstimate:
    options = {"compile": "eager", **more}
    return fe.estimate_free_energy(
        tiny(), (X, Y), likelihood=noise, num_chains=2, progress_bar=False, **options
    )


def test_an_estimate_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    given: dict[str, Any] = {"num_samples": 12, "warmup_steps": 20, "thinning": 2}
    whole = estimate(**given)
    with stopping_after(20 + 15), pytest.warns(RuntimeWarning, match="7 of 12 draws"):
        estimate(save_to=path, **given)
    for _ in range(2):
        found = estimate(save_to=path, resume=True, **given)
        assert (found.llc, found.wbic, found.notes) == (whole.llc, whole.wbic, whole.notes)
    with pytest.raises(ValueError, match=r"with {'num_samples': 12}, not with {'num_samples': 13}"):
        estimate(save_to=path, resume=True, **{**given, "num_samples": 13})


@pytest.mark.slow
def test_an_estimate_until_it_has_mixed_is_gone_on_with(tmp_path: Path) -> None:
    path, whole = tmp_path / "run.zarr", estimate(compile="auto")
    with stopping_after(3000), pytest.warns(RuntimeWarning, match="resume=True goes on"):
        estimate(save_to=path, compile="auto")
    found = estimate(save_to=path, resume=True, compile="auto")
    assert (found.llc, found.wbic, found.notes) == (whole.llc, whole.wbic, whole.notes)


def test_a_ladder_is_gone_on_with(tmp_path: Path) -> None:
    def ladder(**more: Any) -> Any:
        return fe.integrate_free_energy(
            tiny(),
            (X, Y),
            likelihood=noise,
            num_rungs=4,
            num_samples=12,
            warmup_steps=10,
            compile="eager",
            progress_bar=False,
            **more,
        )

    path, whole = tmp_path / "run.zarr", ladder()
    with stopping_after(10 + 7), pytest.warns(RuntimeWarning, match="7 of 12 draws"):
        ladder(save_to=path)
    found = ladder(save_to=path, resume=True)
    assert (found.free_energy, found.mcse) == (whole.free_energy, whole.mcse)
