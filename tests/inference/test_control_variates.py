"""Control variates: unbiased at any anchor, quiet near it, and worth their second gradient."""

from __future__ import annotations

import itertools
import time
from typing import Any, Literal, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import z_score
from torch import Tensor, nn

import ppl_fe as fe
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.run_plan import RunLength, RunPlan, Target
from ppl_fe.inference.step.chains import Chains
from ppl_fe.inference.step.gradients import Anchor, Batch, control_variate, exact_evaluation

Gradient = Literal["minibatch", "control_variate"]


def heavy_tailed(y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(2).to(y), 1.0).to_event(1))
    with pyro.plate("data", len(y), subsample_size=2):
        batch = pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.StudentT(3.0, w[0], w[1].exp()), obs=batch)


@pytest.mark.parametrize("distance", [0.0, 0.1, 3.0])
def test_the_mean_over_all_minibatches_is_the_evaluation_on_all_data(distance: float) -> None:
    generator = torch.Generator().manual_seed(61)
    density = Density(heavy_tailed, (torch.randn(6, generator=generator, dtype=torch.float64),))
    batches = torch.tensor(list(itertools.product(range(6), repeat=2)))  # 36, as chains
    w = torch.tensor([0.4, -0.3], dtype=torch.float64).expand(36, 2)
    at = w + distance * torch.randn(2, generator=generator, dtype=torch.float64)
    anchor = Anchor(at, *exact_evaluation(density, at))
    found = control_variate(density)(w, Batch((batches,), (), density.tensors), anchor)
    exact = exact_evaluation(density, w)
    for name in exact._fields:  # gradient, log_density, log_likelihood
        one, truth = getattr(found, name), getattr(exact, name)[0]
        torch.testing.assert_close(one.mean(0), truth, rtol=1e-12, atol=1e-12)
        if distance == 0.0:  # at its anchor the estimate knows everything
            torch.testing.assert_close(one, truth.expand_as(one), rtol=1e-12, atol=1e-12)
        else:
            assert one.std(0).min() > 1e-3


HIDDEN, N, BATCH = 8, 300, 16
_GENERATOR = torch.Generator().manual_seed(62)
X = torch.randn(N, 4, generator=_GENERATOR, dtype=torch.float64)
LABELS = (X[:, 0] * X[:, 1] + 0.5 * torch.randn(N, generator=_GENERATOR).double() > 0).long()
LOCALIZATION = 400.0


def trained() -> fe.FlatNetwork:
    """A small network at a minimum of its loss on the data, w*."""
    with torch.random.fork_rng():
        torch.manual_seed(63)
        module = nn.Sequential(nn.Linear(4, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 2)).double()
    optimiser = torch.optim.LBFGS(module.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = nn.functional.cross_entropy(module(X), LABELS)
        value = value + 1e-2 * sum(p.square().sum() for p in module.parameters())
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return fe.FlatNetwork(module)


def chains_near(gradient: Gradient, model: Any, position: Tensor, anchor: Tensor) -> Chains:
    kernel = fe.SGLD(model, step_size=1e-6, gradient=gradient)
    plan = RunPlan(RunLength(10), num_chains=len(position), seed=4, compile="eager")
    chains, _ = kernel.prepare(Target(Density(model, (X, LABELS)), start=position), plan)
    if gradient == "control_variate":
        chains.set_anchor(anchor)
    return chains


def variance(chains: Chains, draws: int = 60) -> Tensor:
    """(C,) total variance of the gradient over minibatches."""
    found = torch.stack([chains.fresh_gradient() for _ in range(draws)])
    return found.var(0).sum(-1)


@pytest.mark.slow
def test_the_variance_near_w_star_is_cut_tenfold() -> None:
    network = trained()
    model = fe.models.local_posterior(network, localization=LOCALIZATION, batch_size=BATCH)
    # Posterior draws, not points chosen near w*.
    tree = fe.sample(
        fe.SGLD(model, gradient="control_variate"),
        X,
        LABELS,
        num_samples=1,
        warmup_steps=400,
        num_chains=20,
        compile="traced",
        progress_bar=False,
    )
    draws = torch.as_tensor(tree.posterior["w"].values[:, 0])
    anchor = network.anchor.expand_as(draws)
    distance = (draws - anchor).square().sum(-1).mean() * LOCALIZATION / draws.shape[1]
    assert 0.3 < distance < 1.5  # that of the localiser's own draws is one
    plain = variance(chains_near("minibatch", model, draws, anchor))
    corrected = variance(chains_near("control_variate", model, draws, anchor))
    print(f"variance cut {float(plain.mean() / corrected.mean()):.1f}-fold")
    assert plain.mean() > 10 * corrected.mean()
    # Var ∝ |w − w*|²: at half the distance a quarter.
    half = variance(chains_near("control_variate", model, (draws + anchor) / 2, anchor))
    assert 3.0 < (corrected.mean() / half.mean()).item() < 5.0
    # The two estimators agree on what they estimate.
    one, two = (
        chains_near("minibatch", model, draws, anchor),
        chains_near("control_variate", model, draws, anchor),
    )
    many = torch.stack([one.fresh_gradient() - two.fresh_gradient() for _ in range(60)])
    scores = many.mean(0) / (many.std(0) / 60**0.5)
    assert scores.square().mean().item() == pytest.approx(1.0, abs=0.4)


def test_a_gaussian_mean_has_no_noise_left_at_all() -> None:
    y = torch.linspace(-3.0, 3.0, 40, dtype=torch.float64)

    def model(y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(()).to(y), 1.0))
        with pyro.plate("data", len(y), subsample_size=4):
            pyro.sample("y", dist.Normal(w, 1.0), obs=pyro.subsample(y, event_dim=0))

    kernel = fe.SGLD(model, gradient="control_variate", step_size=0.01)
    plan = RunPlan(RunLength(9), num_chains=3, compile="eager")
    chains, _ = kernel.prepare(Target(Density(model, (y,))), plan)
    assert chains.has_gradient_noise
    exact = exact_evaluation(chains.density, chains.position).gradient
    for _ in range(3):
        torch.testing.assert_close(chains.fresh_gradient(), exact, rtol=1e-10, atol=1e-10)


ROWS, SD = 200, 0.5
INPUTS = torch.randn(ROWS, 3, generator=_GENERATOR)
OUTPUTS = INPUTS @ torch.tensor([1.0, -2.0, 0.5]) + SD * torch.randn(ROWS, generator=_GENERATOR)


def regression(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", ROWS, subsample_size=10):
        rows, answers = pyro.subsample(x, event_dim=1), pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Normal(rows @ w, SD), obs=answers)


class Run(NamedTuple):
    """ESS per thousand gradient evaluations and per second, of the slowest coordinate."""

    draws: np.ndarray
    excess: float
    per_gradient: float
    per_second: float


def error_by_chains(z: np.ndarray) -> float:
    """Standard error of the mean of independent chains (C, S), however long they remember."""
    return float(z.mean(1).std(ddof=1) / len(z) ** 0.5)


def regress(gradient: Gradient) -> Run:
    started = time.perf_counter()
    num_chains, num_samples, thinning = 100, 50, 10
    tree = fe.sample(
        fe.SGLD(regression, gradient=gradient, tolerance=0.2),
        INPUTS,
        OUTPUTS,
        num_samples=num_samples,
        warmup_steps=1500,
        thinning=thinning,
        num_chains=num_chains,
        compile="traced",
        progress_bar=False,
    )
    seconds = time.perf_counter() - started
    draws = tree.posterior["w"].values.astype(np.float64)
    ess = min(draws[..., k].var() / error_by_chains(draws[..., k]) ** 2 for k in range(3))
    gradients = num_chains * num_samples * thinning * (2 if gradient == "control_variate" else 1)
    return Run(
        draws, max(tree.attrs["tuned_excess_temperature"]), 1e3 * ess / gradients, ess / seconds
    )


@pytest.mark.thorough
def test_conjugate_draws_are_exact_and_cheaper_than_plain_ones() -> None:
    x, y = INPUTS.double().numpy(), OUTPUTS.double().numpy()
    precision = np.eye(3) + x.T @ x / SD**2
    mean = np.linalg.solve(precision, x.T @ y / SD**2)
    root = np.linalg.cholesky(precision)
    gradients: list[Gradient] = ["minibatch", "control_variate"]
    runs = {gradient: regress(gradient) for gradient in gradients}
    for name, found in runs.items():
        print(f"{name}: ESS per 1000 gradients {found.per_gradient:.2f}, "
              f"per second {found.per_second:.0f}")  # fmt: skip
        assert 0 < found.excess <= 0.2 * (1 + 1e-3)
        whitened = (found.draws - mean) @ root  # N(0, I)
        for k in range(3):
            z = whitened[..., k]
            assert abs(z_score(z.mean(), 0.0, error_by_chains(z))) < 4.5
            error = error_by_chains(z**2)
            assert 1 - 4.5 * error < (z**2).mean() < 1.2 + 4.5 * error
    # Two gradients a step, counted; the clock is printed only.
    assert runs["control_variate"].per_gradient > 1.5 * runs["minibatch"].per_gradient


def test_without_an_anchor_they_are_the_plain_estimate() -> None:
    """As of a program that takes no minibatches: there is nothing to correct."""

    def whole(y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros_like(y[0]), 1.0))
        pyro.sample("y", dist.Normal(w, 1.0).expand(y.shape).to_event(1), obs=y)

    y = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    density, at = Density(whole, (y,)), torch.tensor([[0.5], [-1.0]], dtype=torch.float64)
    found = control_variate(density)(at, Batch((), (), density.tensors), None)
    torch.testing.assert_close(found.gradient, y.sum() - 4 * at)
