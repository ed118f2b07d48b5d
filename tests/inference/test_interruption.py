"""Runs that end badly: stopped, diverged, or told to write over another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

import ppl_fe as fe
from ppl_fe.inference.step.chains import Chains
from ppl_fe.inference.step.step_function import Statistics

# Runs too short to warm up: what is shown here does not need it.
pytestmark = pytest.mark.filterwarnings("ignore:warmup_steps=:RuntimeWarning")


def gaussian() -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    pyro.sample("s", dist.HalfNormal(1.0))


def quartic() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("wall", -(x**4) / 4)


def draws(kernel: fe.Kernel | None = None, **changed: Any) -> xr.DataTree:
    arguments: dict[str, Any] = {
        "num_samples": 600,
        "warmup_steps": 20,
        "num_chains": 3,
        "compile": "traced",
        "progress_bar": False,
    }
    return fe.sample(kernel or fe.SGLD(gaussian, step_size=0.1), **{**arguments, **changed})


def reopen(path: Path) -> xr.DataTree:
    return xr.open_datatree(path, engine="zarr", consolidated=False).load()


def assert_equal(stored: xr.DataTree, returned: xr.DataTree) -> None:
    for group in ("posterior", "sample_stats"):
        xr.testing.assert_identical(
            stored[group].to_dataset().drop_attrs(), returned[group].to_dataset().drop_attrs()
        )


def interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int, look: Any = None) -> None:
    """Make the step with this number raise what Ctrl-C does, after `look()`."""
    advance, taken = Chains.advance, 0

    def interrupted(self: Chains) -> Statistics:
        nonlocal taken
        if taken == steps:
            if look is not None:
                look()
            raise KeyboardInterrupt
        taken += 1
        return advance(self)

    monkeypatch.setattr(Chains, "advance", interrupted)


def test_what_is_saved_is_what_is_returned(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    returned = draws(save_to=path, num_samples=60)
    stored = xr.open_datatree(path, engine="zarr").load()
    assert_equal(stored, returned)
    assert stored.attrs["sampler"] == "SGLD"
    assert stored.attrs["seed"] == returned.attrs["seed"]
    assert stored["posterior"].attrs["step_size"] == 0.1
    assert_equal(returned, draws(num_samples=60))  # saving changes no draw


def test_an_existing_folder_is_left_alone_and_named(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    first = draws(save_to=path, num_samples=5)
    with pytest.raises(FileExistsError, match=r"save_to: .*run\.zarr already holds"):
        draws(save_to=path, num_samples=5, seed=1)
    assert_equal(reopen(path), first)


def test_an_unfinished_run_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "run.zarr", []
    interrupt_after(monkeypatch, 20 + 400, lambda: seen.append(reopen(path)))
    with pytest.warns(RuntimeWarning, match="interrupted"):
        returned = draws(save_to=path)
    partial = seen[0]["posterior"]["x"]
    assert 0 < partial.sizes["draw"] <= 400
    np.testing.assert_array_equal(partial, returned.posterior["x"][:, : partial.sizes["draw"]])


def test_an_interrupted_run_keeps_its_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = draws(num_samples=100, thinning=3)
    interrupt_after(monkeypatch, 20 + 3 * 41 + 2)  # within the forty-second draw
    path = tmp_path / "run.zarr"
    with pytest.warns(RuntimeWarning, match="interrupted: 41 of 100 draws were kept"):
        returned = draws(num_samples=100, thinning=3, save_to=path)
    assert returned.attrs["interrupted"] == 1
    assert returned.posterior.sizes["draw"] == 41
    for name in ("x", "s"):
        np.testing.assert_array_equal(returned.posterior[name], whole.posterior[name][:, :41])
    stored = xr.open_datatree(path, engine="zarr").load()
    assert_equal(stored, returned)
    assert stored.attrs["interrupted"] == 1


def test_an_interrupt_before_the_first_draw_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_after(monkeypatch, 15)
    with pytest.raises(KeyboardInterrupt):
        draws()


KERNELS = {
    "fixed": fe.SGLD(quartic, step_size=0.05),
    "automatic SGLD": fe.SGLD(quartic),
    "automatic BAOAB": fe.BAOAB(quartic),
}


@pytest.mark.parametrize(
    "kernel",
    [
        pytest.param(name, marks=pytest.mark.thorough) if name == "automatic SGLD" else name
        for name in KERNELS
    ],
)
def test_a_chain_that_diverges_is_left_out_and_named(kernel: str, tmp_path: Path) -> None:
    start, path = torch.tensor([0.3, 1e12, -0.2]), tmp_path / "run.zarr"
    with pytest.warns(
        RuntimeWarning, match="left out: chain 1, .* of x was not finite at warm-up step 1$"
    ):
        tree = draws(KERNELS[kernel], initial_params={"x": start}, num_samples=200, save_to=path)
    assert tree.posterior["chain"].values.tolist() == [0, 2]
    assert list(json.loads(tree.attrs["failed_chains"])) == ["1"]
    for group in ("posterior", "sample_stats"):
        assert all(np.isfinite(values).all() for values in tree[group].to_dataset().values())
    assert (tree.posterior["x"].std("draw") > 0.2).all()  # the others went on
    assert_equal(reopen(path), tree)


def test_a_chain_that_diverges_while_sampling() -> None:
    def wall() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("cliff", 1e30 * (x - 3.0).relu() ** 2)

    kernel = fe.SGLD(wall, step_size=0.02)
    start = {"x": torch.tensor([-1.0, 2.95, -1.5])}
    with pytest.warns(
        RuntimeWarning, match=r"left out: chain 1, .* of x was not finite at step \d+"
    ):
        tree = draws(kernel, num_samples=60, warmup_steps=0, initial_params=start, seed=4)
    assert tree.posterior["chain"].values.tolist() == [0, 2]


def test_all_chains_diverged_is_an_error_with_the_step_size() -> None:
    with pytest.raises(FloatingPointError, match=r"every chain .* at step size 1e\+03"):
        draws(fe.SGLD(quartic, step_size=1e3))


def test_a_program_without_any_finite_start() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("nowhere", torch.where(x == 0.0, 0.0, -torch.inf))

    with pytest.raises(ValueError, match=r"no start with a finite log-density.*initial_params"):
        draws(fe.SGLD(model, step_size=0.1))


def test_a_run_that_fails_before_its_first_draw_leaves_no_folder(tmp_path: Path) -> None:
    target = tmp_path / "run.zarr"
    kernel = fe.SGLD(gaussian, step_size=1e12)
    with pytest.raises(FloatingPointError):
        fe.sample(kernel, save_to=target, warmup_steps=200, progress_bar=False)
    assert not target.exists()
