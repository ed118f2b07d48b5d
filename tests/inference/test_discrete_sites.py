"""Discrete latent sites are summed out: the marginal density, whatever way it is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from ppl_fe.models.likelihoods import Tempering
from pyro.infer import config_enumerate
from pyro.infer.mcmc.util import initialize_model
from pyro.ops.indexing import Vindex
from torch import Tensor

import ppl_fe as fe
from ppl_fe.inference.program.density import Density

Y = torch.tensor([2.1, 1.7, -2.0, 0.3, -1.6, 2.4, 1.9, -1.2])


def parts(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("components", 2):
        means = pyro.sample("means", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0))
    return weights, means, pyro.sample("scale", dist.HalfNormal(1.0))


def by_enumeration(y: Tensor, size: int | None = None) -> None:
    weights, means, scale = parts(y)
    with pyro.plate("data", len(y), subsample_size=size) as rows:
        which = pyro.sample("which", dist.Categorical(weights))
        pyro.deterministic("mean", means[which])
        pyro.sample("y", dist.Normal(means[which], scale), obs=y[rows])


def by_hand(y: Tensor, size: int | None = None) -> None:
    weights, means, scale = parts(y)
    mixed = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(means, scale))
    with pyro.plate("data", len(y), subsample_size=size) as rows:
        pyro.sample("y", mixed, obs=y[rows])


def batch_of(density: Density) -> tuple[Any, ...]:
    indices = tuple(torch.tensor([[0, 3, 5]] * 2) for _ in density.subsamples)
    position = torch.linspace(-0.9, 0.8, 2 * density.num_parameters).reshape(2, -1)
    return position, indices, (), density.tensors


@pytest.mark.parametrize("size", [None, 3])
def test_a_mixture_has_the_density_of_the_marginalised_program(size: int | None) -> None:
    """Gradient, log-likelihood and terms of single data, batched over chains, in minibatches."""
    summed, marginal = Density(by_enumeration, (Y, size)), Density(by_hand, (Y, size))
    assert summed.summed_out == ("which",)
    assert summed.sites == marginal.sites
    found, wanted = (one.batched_gradient(one, *batch_of(one)) for one in (summed, marginal))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    position = batch_of(summed)[0][0]
    runs = [one.run(position).pointwise["y"] for one in (summed, marginal)]
    torch.testing.assert_close(runs[0].log_prob, runs[1].log_prob)
    assert runs[0].axes == runs[1].axes


def switch(y: Tensor) -> None:
    """One discrete site for all the data, and a second that depends on it."""
    rate = pyro.sample("rate", dist.Beta(2.0, 2.0))
    kind = pyro.sample("kind", dist.Bernoulli(rate))
    shift = pyro.sample("shift", dist.Normal(kind, 1.0))
    with pyro.plate("data", len(y)):
        flip = pyro.sample("flip", dist.Bernoulli(0.2 + 0.5 * kind))
        pyro.sample("y", dist.Normal(shift + flip, 1.0), obs=y)


def hidden_markov(y: Tensor) -> None:
    stay = pyro.sample("stay", dist.Beta(4.0, 2.0))
    levels = pyro.sample("levels", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
    moves = torch.stack([torch.stack([stay, 1 - stay]), torch.stack([1 - stay, stay])])
    state: Any = 0
    for t in pyro.markov(range(len(y))):
        law = moves[state] if t == 0 else Vindex(moves)[state]
        state = pyro.sample(f"state_{t}", dist.Categorical(law))
        pyro.sample(f"y_{t}", dist.Normal(Vindex(levels)[..., state], 1.0), obs=y[t])


def in_two_plates(y: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("rows", 4, dim=-2):
        kind = pyro.sample("kind", dist.Categorical(weights))
        with pyro.plate("columns", 2, dim=-1):
            pyro.sample("y", dist.Normal(kind.float(), 1.0), obs=y.reshape(4, 2))


crossed: Callable[..., None] = config_enumerate(in_two_plates)


@pytest.mark.parametrize("program", [switch, hidden_markov, crossed, by_enumeration])
def test_density_and_gradient_are_those_of_pyro_s_potential(program: Callable[..., None]) -> None:
    density = Density(program, (Y,))
    _, potential, _, _ = initialize_model(program, model_args=(Y,), max_plate_nesting=2)
    gradient, terms = density.batched_gradient(density, *batch_of(density))
    for chain, point in enumerate(batch_of(density)[0]):
        leaf = point.clone().requires_grad_()
        energy = potential(density.split(leaf))
        (slope,) = torch.autograd.grad(energy, leaf)
        torch.testing.assert_close(terms.log_density[chain], -energy.detach(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gradient[chain], -slope, rtol=1e-3, atol=1e-4)


def test_what_is_known_of_data_that_share_a_discrete_site() -> None:
    """log p(y | rate, shift) by all values of kind, of which one joint site has no single terms."""
    density = Density(switch, (Y,))
    position = torch.tensor([0.4, -0.3])
    rate, shift = torch.sigmoid(position[0]), position[1]
    logs = []
    for kind in (0.0, 1.0):
        flip = torch.tensor([0.8 - 0.5 * kind, 0.2 + 0.5 * kind])
        mixed = dist.MixtureSameFamily(
            dist.Categorical(flip), dist.Normal(shift + torch.arange(2), 1.0)
        )
        prior = dist.Bernoulli(rate).log_prob(torch.tensor(kind)) + dist.Normal(kind, 1.0).log_prob(
            shift
        )
        logs.append((prior, prior + mixed.log_prob(Y).sum()))
    before, after = (torch.stack(each).logsumexp(0) for each in zip(*logs, strict=True))
    run = density.run(position)
    torch.testing.assert_close(run.log_likelihood, after - before)
    assert run.pointwise == {}


def test_draws_and_predictions_of_a_mixture() -> None:
    kernel = fe.BAOAB(by_enumeration, step_size=0.01)
    quick: dict[str, Any] = {"num_samples": 20, "warmup_steps": 5, "compile": "eager"}
    draws = fe.sample(kernel, Y, progress_bar=False, **quick)
    assert set(draws.posterior.data_vars) == {"weights", "means", "scale"}
    np.testing.assert_array_equal(draws.observed_data["y"], Y)
    terms = fe.add_log_likelihood(draws, by_enumeration, Y).log_likelihood["y"]
    wanted = fe.add_log_likelihood(draws, by_hand, Y).log_likelihood["y"]
    np.testing.assert_allclose(terms, wanted, rtol=1e-4, atol=1e-5)
    predicted = fe.add_posterior_predictive(draws, by_enumeration, Y).posterior_predictive["y"]
    posterior = draws.posterior
    mean = (posterior["weights"].values * posterior["means"].values).sum(-1).mean()
    sd = float(predicted.std()) / (20 * 4) ** 0.5
    assert abs(float(predicted.mean()) - mean) < 5 * sd


def counted(y: Tensor) -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("n", dist.Poisson(3.0))


def branching(y: Tensor) -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    which = pyro.sample("which", dist.Bernoulli(0.5))
    pyro.sample("y", dist.Normal(x if which else -x, 1.0).expand([8]).to_event(1), obs=y)


def wide(y: Tensor) -> None:
    which = pyro.sample("which", dist.Bernoulli(0.5))
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 8, subsample_size=2) as rows:
        pyro.sample("y", dist.Normal(x + which, 1.0), obs=y[rows])


def bounded(y: Tensor) -> None:
    which = pyro.sample("which", dist.Bernoulli(0.5))
    pyro.sample("x", dist.Uniform(0.0, 1.0 + which))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (counted, r"site 'n' is discrete \(Poisson\) and has no list of its values"),
        (branching, r"\['which'\] are summed out.*torch\.where in place of `if`"),
        (wide, "'which' lies outside of the plate 'data', which subsamples"),
        (bounded, r"\['which'\] are summed out, and the model fails at all of their values"),
    ],
)
def test_what_cannot_be_summed_is_refused(program: Callable[..., None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Density(program, (Y,))


@pytest.mark.parametrize("law", ["Multinomial", "OrderedLogistic"])
def test_laws_of_equal_form_are_batched_and_right(law: str) -> None:
    cutpoints, counts = torch.tensor([-1.0, 0.5]), torch.tensor([2.0, 0.0, 3.0])

    def program() -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        if law == "Multinomial":
            logits = torch.stack([x[0], x[1], torch.zeros(())])
            pyro.sample("y", dist.Multinomial(5, logits=logits), obs=counts)
        else:
            made = dist.OrderedLogistic(x, cutpoints).to_event(1)
            pyro.sample("y", made, obs=torch.tensor([2, 0]))

    density = Density(program)
    position = torch.tensor([[0.3, -1.0], [2.0, 0.1]])
    _, terms = density.batched_gradient(density, position, (), (), ())  # by vmap, or it fails
    for point, found in zip(position, terms.log_likelihood, strict=True):
        if law == "Multinomial":
            logits = torch.cat([point, torch.zeros(1)])
            wanted = dist.Multinomial(5, logits=logits).log_prob(counts)
        else:
            wanted = dist.OrderedLogistic(point, cutpoints).log_prob(torch.tensor([2, 0])).sum()
        torch.testing.assert_close(found, wanted)


def test_a_tempered_likelihood_is_not_summed_over_discrete_sites() -> None:
    def tempered() -> None:
        with Tempering(0.5):
            by_enumeration(Y)

    with pytest.raises(ValueError, match="tempered likelihood cannot be summed"):
        Density(tempered)
