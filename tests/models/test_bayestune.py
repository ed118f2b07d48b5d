"""The Laplace/Gamma posterior of a network: its density is the formula, its arguments checked."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from ppl_fe.models import LaplaceGamma, bayestune_posterior, student_t
from torch import Tensor

from ppl_fe.inference.program.density import Density

N = 11
GENERATOR = torch.Generator().manual_seed(2)
X = torch.randn(N, 3, generator=GENERATOR)
Y = torch.randn(N, generator=GENERATOR)
W = torch.tensor([0.4, -0.3, 1.1])
LOG_SCALE = torch.tensor([-1.0, -3.0, 0.5])


class Plane:
    """f(w, x) = x w."""

    anchor = torch.tensor([0.5, -1.0, 0.2])

    def __call__(self, w: Tensor, x: Any) -> Tensor:
        features: Tensor = x["features"] if isinstance(x, dict) else x
        return features @ w


def log_likelihood(w: Tensor, x: Tensor = X, y: Tensor = Y) -> Tensor:
    return (-0.5 * (y - x @ w) ** 2 - 0.5 * math.log(2 * math.pi)).sum()


def log_hierarchy(w: Tensor, s: Tensor, anchor: Tensor, alpha: float, beta: float) -> Tensor:
    gamma = alpha * (s + math.log(beta)) - beta * s.exp() - math.lgamma(alpha)
    return (gamma - math.log(2) - s - (w - anchor).abs() * (-s).exp()).sum()


@pytest.mark.parametrize("data_size", [None, 5.0, 1e4])
def test_density(data_size: float | None) -> None:
    model = bayestune_posterior(Plane(), "normal", data_size=data_size)
    density = Density(model, (X, Y))
    assert [site.name for site in density.sites] == ["log_scale", "w"]
    terms = density(torch.cat([LOG_SCALE, W]))
    torch.testing.assert_close(terms.log_likelihood, log_likelihood(W))
    share = 1.0 if data_size is None else data_size / N
    expected = share * log_likelihood(W)
    expected = expected + log_hierarchy(W, LOG_SCALE, Plane.anchor, 0.01, 100.0)
    torch.testing.assert_close(terms.log_density, expected)


def test_density_of_a_minibatch_of_inputs_by_keyword() -> None:
    prior = LaplaceGamma(alpha=2.0, beta=3.0)
    model = bayestune_posterior(Plane(), "normal", prior, batch_size=4, data_size=100.0)
    density = Density(model, ({"features": X}, Y))
    assert density.subsamples == (("data", N, 4),)
    subset = torch.tensor([10, 3, 3, 7])
    terms = density(torch.cat([LOG_SCALE, W]), (subset,))
    expected = 100 / 4 * log_likelihood(W, X[subset], Y[subset])
    expected = expected + log_hierarchy(W, LOG_SCALE, Plane.anchor, 2.0, 3.0)
    torch.testing.assert_close(terms.log_density, expected)


def test_minibatches_of_a_larger_data_set() -> None:
    model = bayestune_posterior(Plane(), "normal", student_t, num_data=1000, data_size=500.0)
    found = Density(model, (X[:3], Y[:3]), data_per_chain=True)(W)
    torch.testing.assert_close(found.log_likelihood, 1000 / 3 * log_likelihood(W, X[:3], Y[:3]))
    prior = dist.StudentT(4.0, Plane.anchor, 1e-3).log_prob(W).sum()
    expected = 500 / 3 * log_likelihood(W, X[:3], Y[:3]) + prior
    torch.testing.assert_close(found.log_density, expected)


def test_a_fresh_head_gets_a_gaussian_prior_and_its_place_in_the_vector() -> None:
    model = bayestune_posterior(Plane(), "normal", head=[slice(1, 2)], head_precision=4.0)
    density = Density(model, (X, Y))
    sizes = {site.name: site.size for site in density.sites}
    assert sizes == {"log_scale": 2, "w": 2, "head": 1}
    s, kept = LOG_SCALE[:2], W[[0, 2]]
    positions = torch.cat([s, kept, W[1:2]]).expand(2, -1)  # two chains, to see it batched
    gradient, terms = density.batched_gradient(density, positions, (), (), density.tensors)
    expected = log_likelihood(W) + log_hierarchy(kept, s, Plane.anchor[[0, 2]], 0.01, 100.0)
    expected = expected + dist.Normal(0.0, 0.5).log_prob(W[1])
    torch.testing.assert_close(terms.log_density[1], expected)
    slope = X.T @ (Y - X @ W)
    torch.testing.assert_close(gradient[0, 4], slope[1] - 4.0 * W[1])


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"data_size": 0.0}, ValueError, "data_size must be a positive number, got 0"),
        ({"head_precision": -1.0}, ValueError, "head_precision must be a positive"),
        ({"batch_size": 0}, ValueError, "batch_size must be a positive integer or None, got 0"),
        ({"num_data": 2.5}, ValueError, "num_data must be a positive integer"),
        ({"likelihood": "probit"}, ValueError, "likelihood must be one of .*'probit'"),
        ({"head": [slice(0, 3)]}, ValueError, "head covers the whole vector"),
    ],
)
def test_bad_arguments_are_named(
    changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        bayestune_posterior(Plane(), **changed)


def test_a_broken_anchor_is_refused() -> None:
    class Broken(Plane):
        anchor = torch.tensor([0.0, math.nan, 1.0])

    with pytest.raises(ValueError, match="anchor holds NaN or infinite weights"):
        bayestune_posterior(Broken())


@pytest.mark.parametrize("head", [[], [slice(1, 2)]])
def test_a_prior_without_a_return_is_named(head: list[slice]) -> None:
    def forgetful(anchor: Tensor) -> None:
        pyro.sample("w", dist.Normal(anchor, 1.0).to_event(1))

    model: Any = bayestune_posterior
    with pytest.raises(TypeError, match=r"prior must return the site 'w', .*, got None"):
        model(Plane(), "normal", forgetful, head=head)(X, Y)
