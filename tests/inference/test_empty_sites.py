"""Sites without any value, as of data without columns: the draws are those of the other sites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from torch import Tensor

import ppl_fe as fe

Y = 1.0 + torch.randn(20, generator=torch.Generator().manual_seed(31))


def model(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.deterministic("square", w**2)
    with pyro.plate("data", len(y), subsample_size=5) as rows:
        pyro.sample("y", dist.Normal(mean + x[rows] @ w, 1.0), obs=y[rows])


def without(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y), subsample_size=5) as rows:
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y[rows])


def sample(kernel: fe.Kernel, *data: Tensor, **changed: Any) -> xr.DataTree:
    options = {"num_samples": 20, "warmup_steps": 20, "compile": "eager", **changed}
    return fe.sample(kernel, *data, progress_bar=False, **options)


@pytest.mark.parametrize(
    "settings",
    [
        {"step_size": 0.05},
        pytest.param({}, marks=pytest.mark.thorough),
        pytest.param({"metric": "dense", "step_size": 0.05}, marks=pytest.mark.thorough),
    ],
)
@pytest.mark.filterwarnings("ignore:warmup_steps=:RuntimeWarning")
def test_an_empty_site_changes_no_draw_of_the_others(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    path, x = tmp_path / "run.zarr", torch.zeros(20, 0)
    draws = sample(fe.SGLD(model, **settings), x, Y, save_to=path)
    alone = sample(fe.SGLD(without, **settings), Y)
    assert draws["posterior"]["w"].shape == (4, 20, 0) == draws["posterior"]["square"].shape
    xr.testing.assert_identical(draws["posterior"]["mean"], alone["posterior"]["mean"])
    assert list(fe.summary(draws).index) == ["mean"]
    assert fe.diagnose(draws).table.equals(fe.diagnose(alone).table)
    again = sample(fe.SGLD(model, **settings), x, Y, save_to=path, resume=True)
    for group in ("posterior", "sample_stats", "moments"):
        one, other = (tree[group].to_dataset().drop_attrs() for tree in (draws, again))
        xr.testing.assert_identical(one, other)
    draws.to_netcdf(tmp_path / "run.nc")
    assert fe.diagnose(tmp_path / "run.nc").table.equals(fe.diagnose(alone).table)


def test_nothing_but_empty_sites_is_refused_by_name() -> None:
    def empty() -> None:
        pyro.sample("w", dist.Normal(0.0, 1.0).expand([0]).to_event(1))

    with pytest.raises(ValueError, match=r"hold no values \(w\), so there is nothing to sample"):
        sample(fe.SGLD(empty))
