"""Programs and data that have no usable density are refused, and the message says which."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_fe.inference.density import Density


def plated(y: Tensor, size: int, subset: int | None, explicit: bool) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", size, subsample_size=subset) as ix:
        batch = y[ix] if explicit else pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Normal(mean, 1.0), obs=batch)


@pytest.mark.parametrize("discrete", [dist.Bernoulli(0.5), dist.Poisson(3.0)])
def test_a_discrete_latent_site_is_named(discrete: dist.Distribution) -> None:
    def model() -> None:
        pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("switch", discrete)

    with pytest.raises(ValueError, match="latent site 'switch' is discrete"):
        Density(model)


def test_a_discrete_observed_site_is_fine() -> None:
    def model(y: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        pyro.sample("y", dist.Bernoulli(p).expand([2]).to_event(1), obs=y)

    assert Density(model, (torch.ones(2),)).num_parameters == 1


def test_nothing_to_sample() -> None:
    def model(y: Tensor) -> None:
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    with pytest.raises(ValueError, match="no latent site"):
        Density(model, (torch.tensor(1.0),))


def test_a_latent_site_inside_a_subsampled_plate() -> None:
    def model(y: Tensor, size: int) -> None:
        pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y), subsample_size=size):
            offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(offset, 1.0), obs=pyro.subsample(y, event_dim=0))

    with pytest.raises(ValueError, match="'offset' lies inside the subsampled plate 'rows'"):
        Density(model, (torch.zeros(6), 2))
    assert Density(model, (torch.zeros(6), 6)).num_parameters == 7


@pytest.mark.parametrize("size", [5, 8])
@pytest.mark.parametrize("subset", [3, None])
def test_a_plate_that_disagrees_with_the_data(size: int, subset: int | None) -> None:
    with pytest.raises(ValueError, match=r"failed on a trial run.*"):
        Density(plated, (torch.zeros(7), size, subset, False))


@pytest.mark.parametrize("subset", [3, None])
def test_explicit_indices_beyond_the_end_of_the_data(subset: int | None) -> None:
    with pytest.raises(ValueError, match=r"failed on a trial run.*out of (bounds|range)"):
        Density(plated, (torch.zeros(7), 8, subset, True))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_data_that_are_not_finite(bad: float) -> None:
    def model(x: Tensor, data: dict[str, Tensor]) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(slope * x, 1.0), obs=data["y"])

    y = torch.zeros(4)
    y[1:3] = bad
    with pytest.raises(ValueError, match=r"tensor 1 .*\(shape \(4,\)\) holds 2 NaN or infinite"):
        Density(model, (torch.ones(4), {"y": y}))


def test_a_model_that_fails_keeps_its_own_message() -> None:
    def model(x: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        pyro.sample("y", dist.Normal(x @ slope, 1.0), obs=torch.tensor(0.0))

    with pytest.raises(ValueError, match=r"trial run with the data given: .*size") as raised:
        Density(model, (torch.ones(2),))
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_data_outside_a_likelihoods_support() -> None:
    def model(y: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Bernoulli(p), obs=y)

    with pytest.raises(ValueError, match="failed on a trial run"):
        Density(model, (torch.tensor([0.0, 2.0]),))
