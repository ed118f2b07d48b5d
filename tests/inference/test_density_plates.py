"""Plates, subsampling, scales, masks and factors: what is counted, and how often."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

from ppl_fe.inference.density import Density
from ppl_fe.inference.full_data import full_data_terms

Y = torch.tensor([0.5, -1.0, 2.0, 0.1, -0.4, 1.3, 0.9])
GRID = torch.arange(15.0).reshape(5, 3).sin()


def log_normal_pdf(x: Tensor, mean: Tensor | float = 0.0, sd: float = 1.0) -> Tensor:
    mean = torch.as_tensor(mean)
    return -0.5 * ((x - mean) / sd) ** 2 - math.log(sd) - 0.5 * math.log(2 * math.pi)


def subsampling(y: Tensor, explicit: bool, size: int | None) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y), subsample_size=size) as ix:
        batch = y[ix] if explicit else pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Normal(mean, 2.0), obs=batch)


@pytest.mark.parametrize("explicit", [True, False])
def test_a_minibatch_counts_n_over_b_times(explicit: bool) -> None:
    density = Density(subsampling, (Y, explicit, 3))
    assert density.subsamples == (("data", 7, 3),)
    assert density.num_data == 7
    position, subset = torch.tensor([0.3]), torch.tensor([6, 1, 1])  # with replacement
    terms = density(position, (subset,))
    likelihood = 7 / 3 * log_normal_pdf(Y[subset], 0.3, 2.0).sum()
    torch.testing.assert_close(terms.log_likelihood, likelihood)
    torch.testing.assert_close(terms.log_density, likelihood + log_normal_pdf(position[0]))


@pytest.mark.parametrize("vectorized", [True, False])
def test_each_chain_sees_its_own_minibatch(vectorized: bool) -> None:
    density = Density(subsampling, (Y, False, 2), vectorized=vectorized)
    positions, subsets = torch.tensor([[0.3], [-0.9]]), torch.tensor([[0, 5], [2, 2]])
    gradient, terms = density.batched_gradient(density, positions, (subsets,), (), density.tensors)
    for chain in range(2):
        m, batch = positions[chain, 0], Y[subsets[chain]]
        torch.testing.assert_close(gradient[chain, 0], -m + 7 / 2 * (batch - m).sum() / 4)
        torch.testing.assert_close(
            terms.log_likelihood[chain], 7 / 2 * log_normal_pdf(batch, m, 2.0).sum()
        )


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7, None])
@pytest.mark.parametrize("explicit", [True, False])
def test_full_data_is_exact_for_every_batch_size(size: int | None, explicit: bool) -> None:
    density = Density(subsampling, (Y, explicit, size))
    position = torch.tensor([-0.8])
    terms = full_data_terms(density, position, (), density.tensors)
    likelihood = log_normal_pdf(Y, -0.8, 2.0).sum()
    torch.testing.assert_close(terms.log_likelihood, likelihood)
    torch.testing.assert_close(terms.log_density, likelihood + log_normal_pdf(position[0]))


def test_full_data_of_another_precision_than_the_prior() -> None:
    # Control: the minibatch alone takes float64 data under a float32 prior.
    density = Density(subsampling, (Y.double(), False, 3))
    position = torch.tensor([-0.8])
    assert density(position).log_likelihood.dtype == torch.float64
    found = full_data_terms(density, position, (), density.tensors).log_likelihood
    torch.testing.assert_close(found, log_normal_pdf(Y.double(), -0.8, 2.0).sum())


def crossed(y: Tensor, rows: int, columns: int) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with (
        pyro.plate("rows", 5, subsample_size=rows, dim=-2) as i,
        pyro.plate("columns", 3, subsample_size=columns, dim=-1) as j,
    ):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y[i[:, None], j])


def test_nested_plates_multiply_their_scales() -> None:
    density = Density(crossed, (GRID, 2, 2))
    rows, columns = torch.tensor([4, 0]), torch.tensor([1, 2])
    terms = density(torch.tensor([0.7]), (rows, columns))
    expected = 5 / 2 * 3 / 2 * log_normal_pdf(GRID[rows][:, columns], 0.7).sum()
    torch.testing.assert_close(terms.log_likelihood, expected)


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (5, 2), (3, 1), (2, 3)])
def test_full_data_with_two_subsampled_plates(rows: int, columns: int) -> None:
    density = Density(crossed, (GRID, rows, columns))
    terms = full_data_terms(density, torch.tensor([0.7]), (), density.tensors)
    expected = log_normal_pdf(GRID, 0.7).sum()
    torch.testing.assert_close(terms.log_likelihood, expected)
    torch.testing.assert_close(terms.log_density, expected + log_normal_pdf(torch.tensor(0.7)))


def test_two_plates_side_by_side() -> None:
    def model(a: Tensor, b: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        for name, values, size in (("a", a, 2), ("b", b, 3)):
            with pyro.plate(f"{name}_plate", len(values), subsample_size=size):
                batch = pyro.subsample(values, event_dim=0)
                pyro.sample(name, dist.Normal(mean, 1.0), obs=batch)

    density = Density(model, (Y, GRID[:, 0]))
    subsets = (torch.tensor([3, 4]), torch.tensor([0, 2, 2]))
    found = density(torch.tensor([0.2]), subsets).log_likelihood
    expected = 7 / 2 * log_normal_pdf(Y[subsets[0]], 0.2).sum()
    expected += 5 / 3 * log_normal_pdf(GRID[subsets[1], 0], 0.2).sum()
    torch.testing.assert_close(found, expected)
    whole = full_data_terms(density, torch.tensor([0.2]), (), density.tensors).log_likelihood
    everything = log_normal_pdf(torch.cat([Y, GRID[:, 0]]), 0.2).sum()
    torch.testing.assert_close(whole, everything)
    assert density.num_data == 7


def test_latent_sites_inside_a_whole_plate() -> None:
    def model(y: Tensor) -> None:
        with pyro.plate("groups", 3, dim=-1):
            mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
            with pyro.plate("rows", 5, dim=-2):
                pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    density = Density(model, (GRID,))
    position = torch.tensor([0.1, -0.2, 0.3])
    expected = log_normal_pdf(GRID, position).sum()
    terms = density(position)
    torch.testing.assert_close(terms.log_likelihood, expected)
    torch.testing.assert_close(terms.log_density, expected + log_normal_pdf(position).sum())


def test_scales_factors_and_masks() -> None:
    kept = torch.tensor([True, False, True, True, False, True, True])

    def model(y: Tensor) -> None:
        with poutine.scale(scale=0.5):
            mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.factor("penalty", -3.0 * mean**2)
        with pyro.plate("data", 7), poutine.scale(scale=0.25), poutine.mask(mask=kept):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        pyro.sample("z", dist.Poisson(mean.exp()), obs=torch.tensor(2.0))

    terms = Density(model, (Y,))(torch.tensor([0.6]))
    m = torch.tensor(0.6)
    poisson = 2 * m - m.exp() - math.log(2.0)
    masked = log_normal_pdf(Y[kept], m).sum()
    # The likelihood knows neither the tempering nor the factor.
    torch.testing.assert_close(terms.log_likelihood, masked + poisson)
    expected = 0.5 * log_normal_pdf(m) - 3 * m**2 + 0.25 * masked + poisson
    torch.testing.assert_close(terms.log_density, expected)


class Line(PyroModule[nn.Module]):
    """A Bayesian regression written as a module; its weights have names of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](2, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 3.0).expand([1]).to_event(1))

    def forward(self, x: Tensor, y: Tensor) -> Any:
        mean = self.linear(x)[:, 0]
        with pyro.plate("data", len(y)):
            return pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.mark.parametrize("vectorized", [True, False])
def test_a_pyro_module(vectorized: bool) -> None:
    x = GRID[:, :2]
    density = Density(Line(), (x, Y[:5]), vectorized=vectorized)
    assert [site.name for site in density.sites] == ["linear.weight", "linear.bias"]

    def by_hand(u: Tensor) -> Tensor:
        likelihood = log_normal_pdf(Y[:5], x @ u[:2] + u[2]).sum()
        return likelihood + log_normal_pdf(u[:2]).sum() + log_normal_pdf(u[2], 0.0, 3.0)

    positions = torch.tensor([[0.5, -0.2, 0.1], [1.0, 0.0, -2.0]])
    gradient, terms = density.batched_gradient(density, positions, (), (), density.tensors)
    for chain, u in enumerate(positions):
        torch.testing.assert_close(terms.log_density[chain], by_hand(u))
        torch.testing.assert_close(gradient[chain], torch.func.grad(by_hand)(u))


@pytest.mark.parametrize("vectorized", [True, False])
def test_keyword_arguments_that_differ_from_chain_to_chain(vectorized: bool) -> None:
    def model(y: Tensor, *, center: Tensor, beta: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(center, 1.0))
        with pyro.plate("data", 7), poutine.scale(scale=beta):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    own = {"center": torch.tensor([0.0, 5.0]), "beta": torch.tensor([1.0, 0.1])}
    density = Density(model, (Y,), chain_kwargs=own, vectorized=vectorized)
    positions = torch.tensor([[0.4], [0.4]])
    _, terms = density.batched_gradient(
        density, positions, (), density.chain_values, density.tensors
    )
    likelihood = log_normal_pdf(Y, 0.4).sum()
    prior = log_normal_pdf(torch.tensor([0.4, 0.4]), own["center"])
    torch.testing.assert_close(terms.log_likelihood, likelihood.expand(2))
    torch.testing.assert_close(terms.log_density, prior + own["beta"] * likelihood)


def test_a_plate_without_a_size_takes_that_of_its_data() -> None:
    def unsized(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data"):
            pyro.sample("y", dist.Normal(mean, 2.0), obs=y)

    found, sized = Density(unsized, (Y,)), Density(subsampling, (Y, True, None))
    assert (found.num_data, found.subsamples) == (7, ())
    position = torch.tensor([0.3])
    torch.testing.assert_close(found(position), sized(position))
    with pytest.raises(ValueError, match=r"shape \(7, 7\), its plates ask for \(1, 7\)"):
        Density(lambda y: unsized_against_a_column(Y, y), (Y[:, None],))


def unsized_against_a_column(x: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data"):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
