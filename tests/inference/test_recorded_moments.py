"""The `moments` group of a run against the draws stored beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from arviz_stats.base import array_stats
from numpy.typing import NDArray

import ppl_fe as fe

MEANS = torch.tensor([0.0, 50.0])


def model() -> None:
    pyro.sample("w", dist.Normal(MEANS, 1.0).to_event(1))
    pyro.sample("sd", dist.LogNormal(0.0, 0.5))


def draws(**changed: Any) -> xr.DataTree:
    options: dict[str, Any] = {
        "num_samples": 101,
        "warmup_steps": 10,
        "num_chains": 3,
        "compile": "eager",
        "progress_bar": False,
    }
    kernel = fe.BAOAB(model, step_size=0.2, friction=1.0)
    return fe.sample(kernel, **{**options, **changed})


def assert_statistics_of(moments: xr.Dataset, name: str, values: NDArray[Any]) -> None:
    """Moments of a site against its unconstrained draws (C, S, ...)."""
    values = values.astype(np.float64)
    found = {str(m): moments[name].sel(moment=m).values for m in moments.moment.values}
    assert list(found) == ["mean", "sd", "r_hat", "ess"]
    np.testing.assert_allclose(found["mean"], values.mean((0, 1)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["sd"], values.std((0, 1), ddof=1), rtol=1e-4)
    columns = values.reshape(*values.shape[:2], -1)
    axes = {"chain_axis": 0, "draw_axis": 1}
    r_hat = [
        array_stats.rhat(columns[..., k], **axes, method="split") for k in range(columns.shape[-1])
    ]
    np.testing.assert_allclose(found["r_hat"].ravel(), r_hat, rtol=1e-5)
    # By batch means, so only near ArviZ's; its own tests hold it to closed forms.
    ess = [array_stats.ess(columns[..., k], **axes, method="mean") for k in range(len(r_hat))]
    assert ((found["ess"].ravel() < 5 * np.array(ess)) & (found["ess"].ravel() > 3)).all()


def assert_moments_of_draws(tree: xr.DataTree) -> None:
    moments = tree["moments"].to_dataset()
    assert {str(k): v.dims for k, v in moments.items()} == {
        "w": ("moment", "w_dim_0"),
        "sd": ("moment",),
    }
    assert_statistics_of(moments, "w", tree.posterior["w"].values)
    # On unconstrained space, where the chains live.
    assert_statistics_of(moments, "sd", np.log(tree.posterior["sd"].values))


@pytest.mark.parametrize("num_samples", [100, 101])
def test_they_are_the_statistics_of_the_stored_draws(num_samples: int) -> None:
    tree = draws(num_samples=num_samples)
    assert_moments_of_draws(tree)
    mean = tree["moments"].to_dataset()["w"].sel(moment="mean").to_numpy()
    assert mean[1] == pytest.approx(50.0, abs=1.0)


def test_saved_and_opened_again_they_are_the_same(tmp_path: Path) -> None:
    tree = draws(save_to=tmp_path / "run.zarr")
    stored = xr.open_datatree(tmp_path / "run.zarr", engine="zarr").load()
    assert_moments_of_draws(stored)
    xr.testing.assert_identical(
        stored["moments"].to_dataset().drop_attrs(), tree["moments"].to_dataset().drop_attrs()
    )


def test_a_chain_that_is_left_out_has_no_part_in_them() -> None:
    start = {"w": MEANS + torch.zeros(3, 2), "sd": torch.zeros(3)}
    start["w"][1, 0] = torch.inf
    with pytest.warns(RuntimeWarning, match="left out: chain 1, the gradient of w was not finite"):
        tree = draws(initial_params=start)
    assert tree.posterior.sizes["chain"] == 2
    assert_moments_of_draws(tree)


def test_several_checkpoints_have_a_group_each(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(30, 2)
    checkpoints = {f"at {at}": {"weight": torch.full((1, 2), at)} for at in (0.0, 3.0)}
    fe.rank_checkpoints(
        checkpoints,
        torch.nn.Linear(2, 1, bias=False),
        (inputs, torch.zeros(30, 1)),
        likelihood="normal",
        localization=100.0,
        step_size=1e-3,
        num_chains=2,
        num_samples=40,
        warmup_steps=20,
        thinning=1,
        save_to=tmp_path / "runs",
        progress_bar=False,
    )
    tree = xr.open_datatree(tmp_path / "runs" / "0.zarr", engine="zarr").load()
    moments, w = tree["moments"].to_dataset(), tree.posterior["w"].values
    assert moments["w"].dims == ("group", "moment", "w_dim_0")
    assert w.shape == (4, 40, 2)
    for group in range(2):
        own = moments.isel(group=group)
        assert_statistics_of(own, "w", w[2 * group : 2 * group + 2])
    far = moments["w"].sel(moment="mean").values
    np.testing.assert_allclose(far, [[0.0, 0.0], [3.0, 3.0]], atol=0.5)


def test_the_measured_temperature_is_that_of_the_kept_draws() -> None:
    """Beside the predicted one, (C,), along the stiffest direction: here that of log sd."""
    tree = draws(num_samples=400)
    measured = tree.attrs["tuned_measured_temperature"]
    np.testing.assert_allclose(measured, tree.sample_stats["stiff_temperature"].mean("draw"))
    assert np.mean(measured) == pytest.approx(1.0, abs=0.3)
    start = {"w": MEANS + torch.zeros(3, 2), "sd": torch.tensor([0.0, torch.inf, 0.0])}
    with pytest.warns(RuntimeWarning, match="left out: chain 1"):
        tree = draws(initial_params=start)
    measured = np.array(tree.attrs["tuned_measured_temperature"])
    assert np.isnan(measured).tolist() == [False, True, False]
