"""Likelihoods of one's own that are none: refused before a number comes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import ppl_fe as fe

X = torch.linspace(-1, 1, 24).reshape(12, 2)
Y = X[:, 0]


def returns_a_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    loss: Tensor = nn.functional.mse_loss(outputs[:, 0], targets)
    return loss


def returns_a_density(outputs: Tensor, targets: Tensor) -> Tensor:
    density: Tensor = dist.Normal(outputs[:, 0], 1.0).log_prob(targets)
    return density


def has_a_latent_noise(outputs: Tensor, targets: Tensor) -> None:
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    pyro.sample("y", dist.Normal(outputs[:, 0], noise), obs=targets)


def makes_an_event_of_the_rows(outputs: Tensor, targets: Tensor) -> None:
    pyro.sample("y", dist.Normal(outputs[:, 0], 1.0).to_event(1), obs=targets)


def makes_a_factor(outputs: Tensor, targets: Tensor) -> None:
    pyro.factor("y", dist.Normal(outputs[:, 0], 1.0).log_prob(targets))


def has_a_plate_of_its_own(outputs: Tensor, targets: Tensor) -> None:
    with pyro.plate("rows", len(targets)):
        pyro.sample("y", dist.Normal(outputs[:, 0], 1.0), obs=targets)


def broadcasts(outputs: Tensor, targets: Tensor) -> None:
    pyro.sample("y", dist.Normal(outputs, 1.0), obs=targets)


def fails(outputs: Tensor, targets: Tensor) -> None:
    pyro.sample("y", dist.Normal(outputs[:, 1], 1.0), obs=targets)


BAD = [
    (returns_a_loss, "makes no observed site.*pyro.sample"),
    (returns_a_density, "makes no observed site"),
    (makes_a_factor, "makes no observed site"),
    (has_a_latent_noise, "latent site 'noise'"),
    (makes_an_event_of_the_rows, "one log-density for all rows together"),
    (broadcasts, r"log-densities of shape \(1, 1\) .* outputs\[:, 0\]"),
    (fails, r"fails on outputs of .* \(1, 1\), and targets of .* \(1,\): index 1"),
    (has_a_plate_of_its_own, "count all of them 12 times"),
]


def estimate(likelihood: Any) -> Any:
    return fe.estimate_free_energy(
        fe.FlatNetwork(nn.Linear(2, 1)), (X, Y), likelihood=likelihood, progress_bar=False
    )


def choose(likelihood: Any) -> Any:
    module = nn.Linear(2, 1)
    states = {"a": module.state_dict(), "b": nn.Linear(2, 1).state_dict()}
    return fe.choose_checkpoint(states, module, (X, Y), likelihood=likelihood, progress_bar=False)


@pytest.mark.parametrize("call", [estimate, choose])
@pytest.mark.parametrize(("likelihood", "message"), BAD)
def test_it_is_refused(call: Callable[[Any], Any], likelihood: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(likelihood)


def test_a_noise_of_one_s_own_is_that_of_rescaled_targets() -> None:
    """Normal(output, 0.5) has the loss of unit noise about twice as much, and log 2 less."""
    module = nn.Linear(2, 1)
    twice = nn.Linear(2, 1)
    twice.load_state_dict({name: 2 * value for name, value in module.state_dict().items()})

    def half(outputs: Tensor, targets: Tensor) -> None:
        pyro.sample("y", dist.Normal(outputs[:, 0], 0.5), obs=targets)

    short: dict[str, Any] = {"num_samples": 20, "compile": "eager", "progress_bar": False}
    short |= {"warmup_steps": 5, "thinning": 1}
    own = fe.estimate_free_energy(fe.FlatNetwork(module), (X, Y), likelihood=half, **short)
    unit = fe.estimate_free_energy(fe.FlatNetwork(twice), (X, 2 * Y), likelihood="normal", **short)
    assert own.anchor_loss == pytest.approx(unit.anchor_loss - torch.tensor(2.0).log().item())


@pytest.mark.parametrize(
    ("targets", "likelihood", "message"),
    [
        (torch.eye(2, dtype=torch.long).repeat(6, 1), "categorical", r"one-hot, by .*argmax\(1\)"),
        (torch.zeros(12, 1, dtype=torch.long), "categorical", r"targets\[:, 0\]"),
        (torch.zeros(12), "normal", r"fails on outputs of .* \(1, 2\), and targets of .* \(1,\)"),
    ],
)
def test_targets_of_another_shape_are_said_to_be(
    targets: Tensor, likelihood: str, message: str
) -> None:
    network = fe.FlatNetwork(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=message):
        fe.estimate_free_energy(network, (X, targets), likelihood=likelihood, progress_bar=False)
