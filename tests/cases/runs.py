"""Programs of known law, and runs of them that take a second or two."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
import xarray as xr
from torch import Tensor

import ppl_fe as fe

SD = torch.tensor([1.0, 1.5, 2.0])
Y = 1.0 + torch.randn(40, generator=torch.Generator().manual_seed(5))


def gaussian() -> None:
    """Curvatures 1, 0.44 and 0.25."""
    pyro.sample("w", dist.Normal(0.0, SD).to_event(1))


def two_sites() -> None:
    """A stiff site of one value among twenty slacker ones."""
    pyro.sample("stiff", dist.Normal(0.0, 1.0))
    pyro.sample("slack", dist.Normal(0.0, 3.0).expand([20]).to_event(1))


def mixture() -> None:
    """Modes at −8 and 8 that no chain leaves."""
    w = pyro.sample("w", dist.Normal(0.0, 20.0))
    pyro.factor("modes", torch.logaddexp(-((w - 8) ** 2) / 2, -((w + 8) ** 2) / 2))


def quartic() -> None:
    """A chain far out overshoots ever farther."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("wall", -(x**4) / 4)


def wide() -> None:
    """Too many coordinates to be named; those of the second site relax 10⁴ times as slowly."""
    pyro.sample("quick", dist.Normal(0.0, 1.0).expand([200]).to_event(1))
    pyro.sample("slow", dist.Normal(0.0, 100.0).expand([60]).to_event(1))


def mean_of(y: Tensor, size: int = 4) -> None:
    """The mean of y, of known sd 1, from minibatches; curvature 40.01."""
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y), subsample_size=size):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=pyro.subsample(y, event_dim=0))


def run(kernel: fe.Kernel, *data: Any, **changed: Any) -> xr.DataTree:
    """400 draws of each of four chains."""
    settings = {"num_samples": 400, "warmup_steps": 200, "compile": "traced"}
    return fe.sample(kernel, *data, **{"progress_bar": False, **settings, **changed})
