"""The local tempered posterior: its density is the formula, its arguments are checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from ppl_fe.models import gaussian, local_posterior
from ppl_fe.models.localized import LocalPosterior
from torch import Tensor

from ppl_fe.inference.program.density import Density
from ppl_fe.inference.program.full_data import full_data_terms

N = 11
GENERATOR = torch.Generator().manual_seed(2)
X = torch.randn(N, 3, generator=GENERATOR)
Y = torch.randn(N, generator=GENERATOR)
W = torch.tensor([0.4, -0.3, 1.1])


class Plane:
    """f(w, x) = x w, by position or by keyword."""

    def __init__(self, anchor: Tensor | None = None) -> None:
        self.anchor = torch.tensor([0.5, -1.0, 0.2]) if anchor is None else anchor

    def __call__(self, w: Tensor, x: Tensor | Mapping[str, Tensor]) -> Tensor:
        if isinstance(x, Mapping):
            return x["features"] @ w + x["offset"]
        return x @ w


def log_likelihood(w: Tensor, x: Tensor = X, y: Tensor = Y) -> Tensor:
    return (-0.5 * (y - x @ w) ** 2 - 0.5 * math.log(2 * math.pi)).sum()


def log_localiser(w: Tensor, anchor: Tensor, gamma: float) -> Tensor:
    normaliser = 1.5 * math.log(gamma / (2 * math.pi))
    return normaliser - 0.5 * gamma * ((w - anchor) ** 2).sum()


@pytest.mark.parametrize("gamma", [0.3, 100.0])
@pytest.mark.parametrize("beta", [None, 0.7])
def test_density(gamma: float, beta: float | None) -> None:
    model = local_posterior(Plane(), "normal", gamma, beta)
    terms = Density(model, (X, Y))(W)
    effective = 1 / math.log(N) if beta is None else beta
    torch.testing.assert_close(terms.log_likelihood, log_likelihood(W))  # no temperature in it
    expected = effective * log_likelihood(W) + log_localiser(W, Plane().anchor, gamma)
    torch.testing.assert_close(terms.log_density, expected)


def test_density_of_a_minibatch() -> None:
    model = local_posterior(Plane(), "normal", 2.0, 0.5, batch_size=4)
    density = Density(model, (X, Y))
    assert density.subsamples == (("data", N, 4),)
    subset = torch.tensor([10, 3, 3, 7])
    terms = density(W, (subset,))
    likelihood = N / 4 * log_likelihood(W, X[subset], Y[subset])
    torch.testing.assert_close(terms.log_likelihood, likelihood)
    expected = 0.5 * likelihood + log_localiser(W, Plane().anchor, 2.0)
    torch.testing.assert_close(terms.log_density, expected)
    whole = full_data_terms(density, W, (), density.tensors)
    torch.testing.assert_close(whole.log_likelihood, log_likelihood(W))


@pytest.mark.parametrize("batch_size", [None, N, 256])
def test_all_the_data_where_the_batch_covers_them(batch_size: int | None) -> None:
    density = Density(local_posterior(Plane(), "normal", batch_size=batch_size), (X, Y))
    assert density.subsamples == ()
    assert density.num_data == N


def test_minibatches_of_a_larger_data_set() -> None:
    model = local_posterior(Plane(), "normal", 2.0, batch_size=3, num_data=1000)
    density = Density(model, (X[:3], Y[:3]), data_per_chain=True)
    terms = density(W)
    likelihood = 1000 / 3 * log_likelihood(W, X[:3], Y[:3])
    torch.testing.assert_close(terms.log_likelihood, likelihood)
    expected = likelihood / math.log(1000) + log_localiser(W, Plane().anchor, 2.0)
    torch.testing.assert_close(terms.log_density, expected)
    assert density.num_data == 1000


def test_an_anchor_and_a_temperature_for_each_chain() -> None:
    model = local_posterior(Plane(), "normal", 2.0)
    own = {
        "anchor": torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]),
        "inverse_temperature": torch.tensor([1.0, 0.25]),
    }
    density = Density(model, (X, Y), chain_kwargs=own)
    positions = W.expand(2, 3)
    _, terms = density.batched_gradient(
        density, positions, (), density.chain_values, density.tensors
    )
    for chain, beta in enumerate((1.0, 0.25)):
        expected = beta * log_likelihood(W) + log_localiser(W, own["anchor"][chain], 2.0)
        torch.testing.assert_close(terms.log_density[chain], expected)


def test_inputs_by_keyword_are_subsampled_together() -> None:
    inputs = {"features": X, "offset": torch.arange(float(N))}
    density = Density(local_posterior(Plane(), "normal", batch_size=2), (inputs, Y))
    subset = torch.tensor([9, 4])
    residual = Y[subset] - X[subset] @ W - subset
    expected = N / 2 * (-0.5 * residual**2 - 0.5 * math.log(2 * math.pi)).sum()
    torch.testing.assert_close(density(W, (subset,)).log_likelihood, expected)


def test_a_likelihood_of_one_s_own() -> None:
    def poisson(output: Tensor, targets: Tensor) -> Any:
        return pyro.sample("counts", dist.Poisson(output.exp()), obs=targets)

    counts = torch.arange(float(N))
    density = Density(local_posterior(Plane(), poisson), (X, counts))
    rate = X @ W
    expected = (counts * rate - rate.exp() - torch.lgamma(counts + 1)).sum()
    torch.testing.assert_close(density(W).log_likelihood, expected)


def test_the_default_inverse_temperature() -> None:
    model = local_posterior(Plane())
    assert model.resolved_inverse_temperature(100) == pytest.approx(1 / math.log(100))
    with pytest.raises(ValueError, match="1/log n needs n >= 3, the data have 2"):
        model.resolved_inverse_temperature(2)
    fixed: LocalPosterior = local_posterior(Plane(), inverse_temperature=0.3)
    assert fixed.resolved_inverse_temperature(2) == 0.3


def test_gaussian_prior_is_normalised() -> None:
    anchor = Plane().anchor
    density = Density(lambda: gaussian(anchor, precision=7.0))
    torch.testing.assert_close(density(W).log_density, log_localiser(W, anchor, 7.0))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"localization": 0.0}, ValueError, "localization must be a positive number, got 0"),
        ({"localization": math.nan}, ValueError, "localization must be a positive"),
        ({"localization": "1"}, TypeError, "localization must be a number"),
        ({"inverse_temperature": -1.0}, ValueError, "inverse_temperature must be a positive"),
        ({"inverse_temperature": True}, TypeError, "inverse_temperature must be a number"),
        ({"batch_size": 0}, ValueError, "batch_size must be a positive integer or None, got 0"),
        ({"batch_size": 2.5}, ValueError, "batch_size must be a positive integer"),
        ({"num_data": -3}, ValueError, "num_data must be a positive integer"),
        ({"likelihood": "probit"}, ValueError, "likelihood must be one of .*'probit'"),
    ],
)
def test_bad_arguments_are_named(
    changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        local_posterior(Plane(), **changed)


def test_a_broken_anchor_is_refused() -> None:
    with pytest.raises(ValueError, match="anchor holds NaN or infinite weights"):
        local_posterior(Plane(torch.tensor([0.0, math.nan, 1.0])))
