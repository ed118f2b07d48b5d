"""metric="dense": any condition number, every sampler, constrained sites, Pyro's own runner."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import mcse_of_mean, z_score
from pyro.infer import MCMC
from torch import Tensor

import ppl_fe as fe
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.run_plan import RunLength, RunPlan, Target
from ppl_fe.inference.step.dense_metric import LinearMap, at_the_mode, unit_map
from ppl_fe.inference.warmup.learned_in_warmup import Phases

D = 6


def rotation(size: int = D) -> Tensor:
    generator = torch.Generator().manual_seed(51)
    square = torch.randn(size, size, generator=generator, dtype=torch.float64)
    orthogonal: Tensor = torch.linalg.qr(square).Q
    return orthogonal


# Standard deviations from 1e-4 to 1: condition 1e8, in directions of no coordinate.
VARIANCES = torch.logspace(-8, 0, D, dtype=torch.float64)
COVARIANCE = rotation() @ torch.diag(VARIANCES) @ rotation().T
TRIANGLE = torch.linalg.cholesky(COVARIANCE)
MEAN = torch.linspace(-3.0, 5.0, D, dtype=torch.float64)


def narrow_valley() -> None:
    pyro.sample("w", dist.MultivariateNormal(MEAN, scale_tril=TRIANGLE))


def run(kernel: fe.Kernel, *args: Any, **changed: Any) -> Any:
    options: dict[str, Any] = {
        "num_samples": 400,
        "warmup_steps": 600,
        "thinning": 4,
        "num_chains": 50,
        "compile": "traced",
        "progress_bar": False,
    }
    return fe.sample(kernel, *args, **{**options, **changed})


@pytest.mark.parametrize(
    "kernel",
    [
        fe.BAOAB,
        *(
            pytest.param(k, marks=pytest.mark.thorough)
            for k in (fe.PSGLD, fe.SGLD, fe.SGHMC, fe.SGNHT)
        ),
    ],
)
def test_a_gaussian_of_condition_1e8(kernel: type[fe.Kernel]) -> None:
    tree = run(kernel(narrow_valley, metric="dense"))
    w = tree.posterior["w"].values
    assert w.dtype == np.float64
    # The narrowest and the widest direction, and the rest, each in its own standard deviations.
    whitened = (w - MEAN.numpy()) @ rotation().numpy() / np.logspace(-4, 0, D)
    for k in range(D):
        draws = whitened[..., k]
        assert abs(z_score(draws.mean(), 0.0, mcse_of_mean(draws))) < 4.5
        # SGLD, PSGLD and SGHMC are too hot by the tolerance, the others by nothing.
        squares, error = draws**2, mcse_of_mean(draws**2)
        assert 1 - 4.5 * error < squares.mean() < 1.06 + 4.5 * error
        assert error < 0.06
    if kernel is fe.PSGLD:  # reports curvatures in its own metric on top of the dense one
        return
    # The largest of six that the last map, learnt from few draws, leaves near one.
    assert tree.attrs["tuned_stiffest_curvature"] == pytest.approx([1.0] * 50, abs=0.3)
    assert min(tree.attrs["tuned_slowest_curvature"]) > 0.5


@pytest.mark.thorough
def test_without_the_metric_the_valley_is_not_crossed() -> None:
    kernel = fe.SGLD(narrow_valley, step_size=0.2e-8)
    tree = run(kernel, initial_params={"w": MEAN.expand(50, D)}, num_samples=200)
    widest = (tree.posterior["w"].values - MEAN.numpy()) @ rotation().numpy()[:, -1]
    assert widest.std() < 0.1  # 1 in truth


RATE = 2e6


def units() -> None:
    """Sites in units of their own: closed forms a gamma, a beta and a normal."""
    pyro.sample("rate", dist.Gamma(9.0, 9.0 / RATE))
    pyro.sample("share", dist.Beta(6.0, 14.0))
    pyro.sample("offset", dist.Normal(-7.0, 1e-3))


EXACT = {
    "rate": (RATE, RATE / 3),
    "share": (0.3, (0.3 * 0.7 / 21) ** 0.5),
    "offset": (-7.0, 1e-3),
}


def assert_units(draws: dict[str, np.ndarray], most_error: float) -> None:
    for name, (mean, sd) in EXACT.items():
        relative = (draws[name].astype(np.float64) - mean) / sd
        # The bias of the step, a fortieth of a standard deviation, comes on top of the noise.
        assert abs(relative.mean()) < 4 * mcse_of_mean(relative) + 0.025
        assert abs((relative**2).mean() - 1) < 4 * mcse_of_mean(relative**2) + 0.06
        assert mcse_of_mean(relative) < most_error


@pytest.mark.thorough
def test_constrained_sites_in_units_of_their_own() -> None:
    tree = run(fe.BAOAB(units, metric="dense"))
    assert_units({name: tree.posterior[name].values for name in EXACT}, 0.03)
    # On the log scale of a rate of 2e6 the chains start about the mode, 14.5, not within (-2, 2).
    assert abs(float(tree.moments["rate"].sel(moment="mean")) - np.log(RATE)) < 0.2


@pytest.mark.thorough
def test_under_the_runner_of_pyro() -> None:
    pyro.set_rng_seed(5)
    kernel = fe.BAOAB(units, metric="dense")
    mcmc = MCMC(kernel, num_samples=1500, warmup_steps=400, disable_progbar=True)
    mcmc.run()
    samples = mcmc.get_samples()
    assert_units({name: samples[name].numpy().reshape(1, -1) for name in EXACT}, 0.15)


def test_more_than_a_thousand_parameters_are_refused() -> None:
    def large(size: int) -> None:
        pyro.sample("w", dist.Normal(0.0, 1.0).expand([size]).to_event(1))

    with pytest.raises(ValueError, match=r"has D = 1001 \(at most 1000\); use fe.PSGLD"):
        run(fe.SGLD(large, metric="dense"), 1001, num_chains=1)


def linear_map() -> LinearMap:
    generator = torch.Generator().manual_seed(52)
    factor = torch.randn(2, 4, 4, generator=generator, dtype=torch.float64)
    return LinearMap(factor[:, 0], factor)


def test_the_map_its_inverse_and_its_gradient() -> None:
    metric = linear_map()
    u = torch.randn(2, 4, generator=torch.Generator().manual_seed(53), dtype=torch.float64)
    w = metric.to_position(u)
    torch.testing.assert_close(metric.from_position(w), u)
    torch.testing.assert_close(metric.to_displacement(u), w - metric.origin)
    own = u.clone().requires_grad_()
    (expected,) = torch.autograd.grad(metric.to_position(own).sin().sum(), own)
    torch.testing.assert_close(metric.to_gradient(w.cos()), expected)


def test_a_refined_map_whitens_the_draws_it_saw() -> None:
    metric = linear_map()
    generator = torch.Generator().manual_seed(54)
    mixing = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    draws = 2 + torch.randn(100_000, 4, generator=generator, dtype=torch.float64) @ mixing
    refined = metric.refine(draws, 1e9)
    for chain in range(2):
        one = LinearMap(*(part[chain] for part in metric))
        new = LinearMap(*(part[chain] for part in refined))
        u = torch.linalg.solve(new.factor, (one.to_position(draws) - new.origin).T).T
        torch.testing.assert_close(torch.cov(u.T), torch.eye(4).double(), atol=2e-3, rtol=0)
        assert u.mean(0).abs().max() < 1e-3
    stuck = torch.zeros(2, 4, dtype=torch.float64)  # changes little: two draws against 10 + 4
    torch.testing.assert_close(metric.refine(stuck, 1e9).factor, metric.factor * (14 / 16) ** 0.5)
    unmixed = metric.refine(draws, 1.0)  # many draws that count for one
    share = 1 / 15
    expected = share * torch.cov(draws.T) + (1 - share) * torch.eye(4).double()
    found = torch.linalg.solve(metric.factor[0], unmixed.factor[0])
    torch.testing.assert_close(found @ found.mT, expected)


def test_at_the_mode_is_the_mode_and_the_inverse_hessian() -> None:
    density = Density(narrow_valley)
    metric = at_the_mode(density, torch.zeros(3, D, dtype=torch.float64))
    assert metric is not None
    sd = COVARIANCE.diagonal().sqrt()
    assert ((metric.origin - MEAN).abs() < 1e-3 * sd).all()
    found = metric.factor @ metric.factor.mT
    scale = torch.outer(sd, sd)
    assert ((found - COVARIANCE).abs() < 1e-5 * scale).all()


def funnel() -> None:
    """Neal's: its highest density, 40 below the mean of v, has no mass."""
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(torch.zeros(9), torch.exp(v / 2)).to_event(1))


def schools() -> None:
    """Eight, centred: the density has no bound where tau falls to zero."""
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        errors = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
        effects = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
        pyro.sample("y", dist.Normal(theta, errors), obs=effects)


@pytest.mark.parametrize("program", [funnel, pytest.param(schools, marks=pytest.mark.thorough)])
def test_a_posterior_whose_mode_says_nothing_of_it_has_its_metric_from_draws(program: Any) -> None:
    assert at_the_mode(Density(program), torch.ones(2, 10)) is None
    tree = run(
        fe.BAOAB(program, metric="dense", step_size=0.01, friction=1.0),
        num_samples=10,
        warmup_steps=40,
        num_chains=2,
    )
    assert tree.attrs["metric"] == "dense"
    assert json.loads(tree.attrs["failed_chains"]) == {}
    # Chains start where any others do, not at the top of the neck.
    assert np.abs(tree.posterior["v" if program is funnel else "mu"].values).max() < 10


def test_draws_too_far_apart_leave_the_metric_as_it_is() -> None:
    metric = unit_map(torch.zeros(2, 3))
    assert metric.refine(torch.tensor([[1e30, 0, 0], [-1e30, 0, 0], [0, 1, 1]]), 3.0) is metric


def test_a_new_metric_leaves_the_chains_where_they_are() -> None:
    kernel = fe.BAOAB(narrow_valley, metric="dense", step_size=0.2, friction=1.0)
    warmup_steps = 40
    plan = RunPlan(RunLength(10, warmup_steps), num_chains=4, seed=3, compile="eager")
    chains, adaptation = kernel.prepare(Target(Density(narrow_valley)), plan)
    phases = Phases(chains, adaptation, warmup_steps)
    moved = 0
    for _ in range(warmup_steps):
        before, metric = chains.position, chains.metric
        assert metric is not None
        factor = metric.factor.clone()
        phases.before_step()
        if not torch.equal(metric.factor, factor):
            moved += 1
            torch.testing.assert_close(chains.position, before, rtol=1e-6, atol=1e-8)
        chains.advance()
    assert moved == 4
