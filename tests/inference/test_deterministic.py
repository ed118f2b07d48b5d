"""Sites of `pyro.deterministic` are among the draws, whatever the supports of the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from torch import Tensor

import ppl_fe as fe
from ppl_fe.inference.record import recorder as draws_module

Y = torch.linspace(-1.0, 1.0, 6)


def real(y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.deterministic("odds", slope.exp(), event_dim=1)
    with pyro.plate("rows", len(y)):
        mean = pyro.deterministic("mean", slope[0] + y * slope[1])
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def in_minibatches(y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.deterministic("odds", slope.exp(), event_dim=1)
    with pyro.plate("rows", len(y), subsample_size=3) as rows:
        mean = pyro.deterministic("mean", slope[0] + y[rows] * slope[1])
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y[rows])


def wide(y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([150]).to_event(1))
    pyro.deterministic("twice", 2.0 * w, event_dim=1)
    pyro.deterministic("total", w.sum())


def draws(model: Any) -> xr.Dataset:
    tree = fe.sample(
        fe.SGLD(model, step_size=0.05), Y, num_samples=12, warmup_steps=2, num_chains=2,
        compile="traced", progress_bar=False,
    )  # fmt: skip
    found: xr.Dataset = tree.posterior.to_dataset()
    return found


def test_they_are_functions_of_the_draws() -> None:
    found = draws(real)
    slope = found["slope"].values
    np.testing.assert_allclose(found["odds"].values, np.exp(slope), rtol=1e-6)
    expected = slope[..., :1] + slope[..., 1:] * Y.numpy()
    np.testing.assert_allclose(found["mean"].values, expected, atol=1e-6)


def test_what_belongs_to_a_minibatch_is_left_out() -> None:
    assert set(draws(in_minibatches).data_vars) == {"slope", "odds"}


def test_of_large_ones_a_subset_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws_module, "LARGEST_KEPT", 2 * 12 * 100)
    found = draws(wide)
    assert {name: values.shape[2:] for name, values in found.items()} == {
        "w": (100,),
        "w_projection": (16,),
        "twice": (100,),
        "twice_projection": (16,),
        "total": (),
    }
    np.testing.assert_allclose(found["twice"].values, 2 * found["w"].values, rtol=1e-6)
    assert found["twice_dim_0"].equals(found["w_dim_0"].rename(w_dim_0="twice_dim_0"))
