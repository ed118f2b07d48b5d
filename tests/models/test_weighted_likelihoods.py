"""One log-likelihood of a datum, weights and masks included, wherever one is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import ppl_fe as fe
from ppl_fe.finetuning.objective import Objective
from ppl_fe.free_energy.local_chains import held_out_loss
from ppl_fe.inference.program.density import Density

WEIGHTS = torch.tensor([1.0, 20.0, 0.5])
GENERATOR = torch.Generator().manual_seed(11)
X, LABELS = torch.randn(40, 4, generator=GENERATOR), torch.arange(40) % 3
SEEN = torch.arange(40) % 4 > 0
QUICK: dict[str, Any] = {
    "localization": 50.0, "num_samples": 4, "warmup_steps": 2, "thinning": 1, "num_chains": 2,
    "step_size": 1e-3, "compile": "eager", "progress_bar": False,
}  # fmt: skip


def by_scale(output: Tensor, targets: Tensor) -> None:
    with poutine.scale(scale=WEIGHTS[targets]):
        pyro.sample("y", dist.Categorical(logits=output), obs=targets)


def by_one_number(output: Tensor, targets: Tensor) -> None:
    with poutine.scale(scale=0.25):
        pyro.sample("y", dist.Categorical(logits=output), obs=targets)


def by_mask(output: Tensor, targets: Tensor) -> None:
    with poutine.mask(mask=targets != 1):
        pyro.sample("y", dist.Categorical(logits=output), obs=targets)


def by_masked_distribution(output: Tensor, targets: Tensor) -> None:
    pyro.sample("y", dist.Categorical(logits=output).mask(targets != 1), obs=targets)


def by_obs_mask(output: Tensor, targets: Tensor) -> None:
    pyro.sample("y", dist.Categorical(logits=output), obs=targets, obs_mask=targets != 1)


def by_both(output: Tensor, targets: Tensor) -> None:
    with poutine.scale(scale=WEIGHTS[targets]), poutine.mask(mask=targets != 1):
        pyro.sample("y", dist.Categorical(logits=output), obs=targets)


ONES, WITHOUT_ONE = torch.ones(3), torch.tensor([1.0, 0.0, 1.0])
# The weight of each class that makes torch's cross-entropy equal.
LIKELIHOODS: dict[Callable[..., None], Tensor] = {
    by_scale: WEIGHTS,
    by_one_number: 0.25 * ONES,
    by_mask: WITHOUT_ONE,
    by_masked_distribution: WITHOUT_ONE,
    by_obs_mask: WITHOUT_ONE,
    by_both: WEIGHTS * WITHOUT_ONE,
}
EACH = pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda f: f.__name__)


def module() -> nn.Module:
    torch.manual_seed(12)
    return nn.Linear(4, 3)


def torchs(likelihood: Callable[..., None], output: Tensor) -> Tensor:
    weights = LIKELIHOODS[likelihood]
    return cross_entropy(output, LABELS, weights, reduction="sum") / len(LABELS)


def value_of(loss: Tensor) -> float:
    return float(loss.detach())


@EACH
def test_fine_tuning_follows_torchs_weighted_cross_entropy(
    likelihood: Callable[..., None],
) -> None:
    network = fe.FlatNetwork(module())
    steps, rate = 5, 1e-3
    tuned = fe.finetune(
        network, (X, LABELS), likelihood=likelihood, method="full", learning_rate=rate,
        num_steps=steps, batch_size=None, progress_bar=False,
    )  # fmt: skip
    assert tuned.history["loss"].iloc[0] == pytest.approx(
        value_of(torchs(likelihood, module()(X))), rel=1e-5
    )
    unweighted = fe.finetune(
        network, (X, LABELS), method="full", learning_rate=rate, num_steps=steps,
        batch_size=None, progress_bar=False,
    )  # fmt: skip
    same = torch.equal(tuned.weights, unweighted.weights)
    assert not same or likelihood is by_one_number  # AdamW does not feel one factor for all


@EACH
def test_the_objectives_gradient_is_torchs(likelihood: Callable[..., None]) -> None:
    net = module()
    loss, output = Objective(likelihood, torch.device("cpu"))(net, (X, LABELS))
    found = torch.autograd.grad(loss, list(net.parameters()))
    wanted = torch.autograd.grad(torchs(likelihood, net(X)), list(net.parameters()))
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert output.shape == (40, 3)


@EACH
@pytest.mark.parametrize("batch_size", [pytest.param(None, marks=pytest.mark.thorough), 8])
def test_the_estimators_loss_is_what_their_chains_see(
    likelihood: Callable[..., None], batch_size: int | None
) -> None:
    network = fe.FlatNetwork(module())
    found = fe.estimate_free_energy(
        network, (X, LABELS), likelihood=likelihood, batch_size=batch_size, **QUICK
    )
    wanted = value_of(torchs(likelihood, module()(X)))
    assert found.anchor_loss == pytest.approx(wanted, rel=1e-5)
    anchors = network.anchor[None]
    held_out = held_out_loss(network, anchors, (X, LABELS), likelihood=likelihood)
    assert float(held_out[0]) == pytest.approx(wanted, rel=1e-5)
    # The density that the chains follow moves with β times that loss, and nothing else.
    program = fe.models.local_posterior(network, likelihood, 50.0, 0.3, batch_size=None)
    density = Density(program, (X, LABELS))
    other = network.anchor + 0.1
    at = [density(w, None, (), density.tensors) for w in (network.anchor, other)]
    change = float(at[1].log_density - at[0].log_density)
    loss = [value_of(torchs(likelihood, network(w, X))) for w in (network.anchor, other)]
    localizer = -0.5 * 50.0 * 0.01 * network.num_parameters
    assert change == pytest.approx(0.3 * 40 * (loss[0] - loss[1]) + localizer, rel=1e-4)
    assert float(at[1].log_likelihood) == pytest.approx(-40 * loss[1], rel=1e-5)


@EACH
def test_log_likelihoods_of_single_data_carry_weights(likelihood: Callable[..., None]) -> None:
    network = fe.FlatNetwork(module())
    program = fe.models.local_posterior(network, likelihood, 50.0, 0.3, batch_size=None)
    draws = fe.sample(
        fe.BAOAB(program, step_size=1e-4), X, LABELS, num_samples=3, warmup_steps=1, num_chains=2,
        compile="eager", progress_bar=False,
    )  # fmt: skip
    terms = fe.add_log_likelihood(draws, program, X, LABELS).log_likelihood
    (name,) = terms.data_vars
    w = torch.as_tensor(draws.posterior["w"].values[1, 2])
    wanted = -cross_entropy(network(w, X), LABELS, LIKELIHOODS[likelihood], reduction="none")
    np.testing.assert_allclose(terms[name].values[1, 2], wanted.numpy(), rtol=1e-4, atol=1e-5)


QUICKLY = fe.BayesTune(
    scales="expected", warmup_steps=8, num_samples=4, thinning=1, num_chains=2, data_size=40.0
)


@pytest.mark.parametrize("rule", [fe.GradientSquared(), QUICKLY])
def test_stage_one_hears_weights(rule: fe.Rule) -> None:
    torch.manual_seed(1)
    network = fe.FlatNetwork(nn.Linear(4, 3))
    options: dict[str, Any] = {"sparsity": 0.2, "progress_bar": False, "seed": 3}

    def nothing_of_one(output: Tensor, targets: Tensor) -> None:
        with poutine.mask(mask=targets != 1):
            pyro.sample("y", dist.Categorical(logits=output), obs=targets)

    found, plain = (
        fe.select_parameters(network, (X, LABELS), likelihood=like, rule=rule, **options).score
        for like in (nothing_of_one, fe.models.categorical)
    )
    assert not torch.allclose(found, plain)


def test_missing_targets_are_imputed_without_a_flat_direction() -> None:
    # y_i ~ N(mean, 1), three of eight seen: the mean's posterior is N(Σy/4, 1/4), and the missing
    # values follow N(mean, 1).
    y, seen = torch.tensor([1.0, 2.0, 3.0, 9, 9, 9, 9, 9]), torch.arange(8) < 3

    def model() -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 8):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y, obs_mask=seen)

    draws = fe.sample(
        fe.BAOAB(model), num_samples=200, thinning=3, num_chains=16, progress_bar=False
    )
    posterior = draws.posterior
    assert float(posterior["mean"].mean()) == pytest.approx(1.5, abs=0.05)
    assert float(posterior["mean"].std()) == pytest.approx(0.5, rel=0.1)
    missing = posterior["y_unobserved"].values
    assert missing[..., 3:].std() == pytest.approx(1.25**0.5, rel=0.1)
    assert missing[..., :3].std() == pytest.approx(1.25**0.5, rel=0.1)
