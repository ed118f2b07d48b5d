"""Starts about modes: against closed forms, and where there is no mode to find."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_fe as fe
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.run_plan import RunLength, RunPlan, Target
from ppl_fe.inference.warmup.learned_in_warmup import Phases
from ppl_fe.inference.warmup.starts import MOST_DESCENTS, MOST_ROWS, about_modes

D, B = 3, 30


def _data(num_data: int = 700) -> tuple[Tensor, Tensor]:
    """A regression whose first slope is far outside the starts' (−2, 2)."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num_data, D, generator=generator, dtype=torch.float64)
    x = x * torch.tensor([1.0, 1.5, 0.7], dtype=torch.float64)
    noise = torch.randn(num_data, generator=generator, dtype=torch.float64)
    return x, x @ torch.tensor([30.0, -1.0, 0.5], dtype=torch.float64) + noise


def _regression(x: Tensor, y: Tensor) -> None:
    prior = dist.Normal(torch.zeros(D, dtype=x.dtype), 10.0).to_event(1)
    slope = pyro.sample("slope", prior)
    with pyro.plate("data", len(y), subsample_size=B) as rows:
        pyro.sample("y", dist.Normal(x[rows] @ slope, 1.0), obs=y[rows])


def _posterior(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    covariance = torch.linalg.inv(x.T @ x + 0.01 * torch.eye(D, dtype=x.dtype))
    return covariance @ x.T @ y, covariance


def _far(num_chains: int, size: int = D) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return 4 * torch.rand(num_chains, size, generator=generator, dtype=torch.float64) - 2


def test_the_mode_is_the_posterior_mean_of_a_regression() -> None:
    data = _data()  # 700 is no multiple of 30: the last rows count as well
    mean, covariance = _posterior(*data)
    found = about_modes(Density(_regression, data), _far(4), seed=0)
    away = (found.mode - mean) / covariance.diagonal().sqrt()
    assert away.abs().max() < 1e-3


def test_starts_are_spread_by_two_posterior_standard_deviations() -> None:
    data = _data()
    mean, covariance = _posterior(*data)
    found = about_modes(Density(_regression, data), _far(400), seed=0)
    root = torch.linalg.cholesky(covariance)
    u = torch.linalg.solve_triangular(root, (found.position - mean).T, upper=False)
    spread = u.square().mean(1).sqrt()  # in posterior sd, along each whitened direction
    assert ((spread > 1.7) & (spread < 2.3)).all()  # four errors: sd of each 2/√800
    assert not torch.equal(found.mode[0], found.mode[1])  # each of the first sixteen descended
    assert torch.equal(found.mode[0], found.mode[MOST_DESCENTS])


def test_of_many_data_the_mode_is_that_of_ten_thousand() -> None:
    data = _data(3 * MOST_ROWS)
    mean, covariance = _posterior(*data)
    found = about_modes(Density(_regression, data), _far(1), seed=0)
    # With replacement: the error has N/n times the posterior's variance, and that of 9990 rows.
    sd = (covariance * 3).diagonal().sqrt()
    away = ((found.mode[0] - mean) / sd).abs()
    assert 1e-3 < away.max() < 4.5


def test_chains_that_lead_to_different_modes_stay_apart() -> None:
    def two_modes(y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros((), dtype=y.dtype), 10.0))
        with pyro.plate("data", len(y), subsample_size=10) as rows:
            pyro.sample("y", dist.Normal(w.square(), 1.0), obs=y[rows])

    y = 1 + torch.zeros(100, dtype=torch.float64)
    far = torch.tensor([[-1.5], [1.5], [-0.7]], dtype=torch.float64)
    found = about_modes(Density(two_modes, (y,)), far, seed=0)
    torch.testing.assert_close(
        found.mode[:, 0], torch.tensor([-1.0, 1.0, -1.0]).double(), atol=1e-3, rtol=0
    )
    assert (found.position.sign() == far.sign()).all()


def test_without_a_mode_the_far_start_is_kept() -> None:
    def funnel(y: Tensor) -> None:
        scale = pyro.sample("scale", dist.HalfCauchy(torch.ones((), dtype=y.dtype)))
        w = pyro.sample("w", dist.Normal(torch.zeros(8, dtype=y.dtype), scale).to_event(1))
        with pyro.plate("data", len(y), subsample_size=2) as rows:
            pyro.sample("y", dist.Normal(w[0], 10.0), obs=y[rows])

    far = _far(3, 9)
    found = about_modes(Density(funnel, (torch.zeros(4).double(),)), far, seed=0)
    assert torch.equal(found.position, far)
    assert torch.equal(found.mode, far)


@pytest.mark.parametrize(("rate", "arrives"), [(5.0, True), (120.0, False)])
def test_an_overflow_on_the_way_leaves_the_far_start(rate: float, arrives: bool) -> None:
    def counts(y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(()), 100.0))
        with pyro.plate("data", len(y), subsample_size=5) as rows:
            pyro.sample("y", dist.Poisson((rate * w).exp()), obs=y[rows])

    far = torch.tensor([[-1.2]])
    found = about_modes(Density(counts, (torch.full((20,), 3.0),)), far, seed=0)
    assert found.position.isfinite().all()
    if arrives:
        mode = torch.tensor([[3.0]]).log() / rate
        torch.testing.assert_close(found.mode, mode, atol=1e-4, rtol=0)
    else:
        assert torch.equal(found.position, far)


def test_large_models_keep_their_starts() -> None:
    def large(y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(1001), 1.0).to_event(1))
        with pyro.plate("data", len(y), subsample_size=2) as rows:
            pyro.sample("y", dist.Normal(w[0], 1.0), obs=y[rows])

    far = torch.ones(2, 1001)
    assert torch.equal(about_modes(Density(large, (torch.zeros(4),)), far, 0).position, far)


@pytest.mark.parametrize(
    ("kernel", "metric"),
    [
        # Of CI: test_control_variates.py
        pytest.param(fe.SGLD, "identity", marks=pytest.mark.slow),
        pytest.param(fe.BAOAB, "dense", marks=pytest.mark.slow),
        pytest.param(fe.SGLD, "dense", marks=pytest.mark.slow),
        pytest.param(fe.SGHMC, "identity", marks=pytest.mark.slow),
        pytest.param(fe.SGHMC, "dense", marks=pytest.mark.slow),
        pytest.param(fe.BAOAB, "identity", marks=pytest.mark.slow),
    ],
)
def test_control_variates_at_their_defaults_converge(kernel: Any, metric: str) -> None:
    data = _data()
    mean, covariance = _posterior(*data)
    sampler = kernel(_regression, gradient="control_variate", metric=metric)
    draws = fe.sample(sampler, *data, warmup_steps=1000, thinning=8, progress_bar=False)
    assert draws.posterior.sizes["chain"] == 4
    found = fe.summary(draws)
    assert found["r_hat"].max() < 1.03
    slopes, sd = draws.posterior.slope.to_numpy(), covariance.diagonal().sqrt().numpy()
    z = (slopes.mean((0, 1)) - mean.numpy()) / (sd / found["ess_bulk"].to_numpy() ** 0.5)
    assert abs(z).max() < 4.5
    ratio = slopes.std((0, 1)) / sd
    assert ((ratio > 0.9) & (ratio < 1.15)).all()


@pytest.mark.parametrize(("centre", "near"), [(0.0, True), (30.0, False)])
def test_a_chain_without_a_mode_descends_in_warm_up(centre: float, near: bool) -> None:
    def one_sided(y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros((), dtype=y.dtype), 10.0))
        # Beyond w = -1 the density rises without end: starts there have no mode to find.
        pyro.factor("pole", torch.where(w < -1, centre * w.square(), 0.0))
        with pyro.plate("data", len(y), subsample_size=5) as rows:
            pyro.sample("y", dist.Normal(w, 1.0), obs=y[rows])

    kernel = fe.SGLD(one_sided, gradient="control_variate")
    density = Density(one_sided, (torch.ones(20, dtype=torch.float64),))
    plan = RunPlan(RunLength(10, 40), num_chains=16, compile="traced")
    chains, adaptation = kernel.prepare(Target(density), plan)
    assert chains.near_mode == near
    assert chains.anchor is not None
    before = chains.anchor.position.clone()
    phases = Phases(chains, adaptation, 40)
    for _ in range(40):
        phases.before_step()
        chains.advance()
    # Control variates are taken about a mode for good, and else follow the chains.
    assert torch.equal(chains.anchor.position, before) == near
