"""Priors: their densities are the formulas, their draws have those laws, NUTS finds quadrature."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import laplace_gamma_posterior, mcse_of_mean
from ppl_fe.models import (
    LaplaceGamma,
    gaussian_scale_mixture,
    horseshoe,
    laplace_gamma,
    student_t,
)
from ppl_fe.models.priors import LaplaceOfLogScale, LogGamma
from pyro import poutine
from pyro.infer import MCMC, NUTS
from scipy import stats
from torch import Tensor

from ppl_fe.finetuning.bayestune.scale_posterior import log_marginal_density

ANCHOR = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
W = torch.tensor([0.45, -1.3, 0.2], dtype=torch.float64)


def log_density(prior: Callable[[Tensor], Tensor], **sites: Tensor) -> float:
    trace = poutine.trace(poutine.condition(prior, data=sites)).get_trace(ANCHOR)
    assert tuple(trace.nodes["w"]["value"].shape) == (3,)
    assert trace.nodes["w"]["fn"].event_dim == 1
    found: float = trace.log_prob_sum().item()
    return found


def test_laplace_gamma_density() -> None:
    scale = torch.tensor([0.01, 0.3, 2.0], dtype=torch.float64)
    prior = LaplaceGamma(alpha=0.7, beta=5.0)
    found = log_density(prior, w=W, log_scale=scale.log())
    expected = (
        stats.gamma.logpdf(scale.numpy(), 0.7, scale=1 / 5.0) + scale.log().numpy()
    )  # d scale/d log scale
    expected = expected + stats.laplace.logpdf(W.numpy(), ANCHOR.numpy(), scale.numpy())
    assert found == pytest.approx(expected.sum(), rel=1e-12)


def test_the_former_spelling_is_the_same_program() -> None:
    sites = {"w": W, "log_scale": torch.tensor([-4.0, -1.0, 0.5], dtype=torch.float64)}
    with pytest.warns(DeprecationWarning, match=r"use fe.models.LaplaceGamma\(alpha, beta\)"):
        former = log_density(functools.partial(laplace_gamma, alpha=0.7), **sites)
    assert former == log_density(LaplaceGamma(alpha=0.7), **sites)
    with pytest.raises(ValueError, match="beta must be a positive number, got 0"):
        LaplaceGamma(beta=0.0)


@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 20.0), (2.0, 5.0)])
def test_select_parameters_has_the_prior_of_this_program(alpha: float, beta: float) -> None:
    """Its engine never runs the program: the density it uses is this one's, scales summed out."""
    offsets = torch.tensor([1e-3, 0.05, 0.4], dtype=torch.float64)
    grid = torch.linspace(-30, 5, 7001, dtype=torch.float64)
    parts = []
    for offset in offsets:
        sites = {"w": offset.expand(len(grid)), "log_scale": grid}
        program = poutine.condition(LaplaceGamma(alpha, beta), data=sites)
        nodes = poutine.trace(program).get_trace(torch.zeros_like(grid)).nodes
        each = nodes["w"]["fn"].base_dist.log_prob(sites["w"]) + nodes["log_scale"][
            "fn"
        ].base_dist.log_prob(grid)
        parts.append(each.exp().sum() * (grid[1] - grid[0]))
    exact = log_marginal_density(offsets.numpy(), alpha, beta)
    np.testing.assert_allclose(torch.stack(parts).log().numpy(), exact, rtol=0, atol=1e-3)


def test_a_scale_for_each_group() -> None:
    groups = torch.tensor([1, 0, 1])
    scale = torch.tensor([0.3, 0.01], dtype=torch.float64)
    prior = LaplaceGamma(alpha=0.7, beta=5.0, groups=groups)
    found = log_density(prior, w=W, log_scale=scale.log())
    expected = (stats.gamma.logpdf(scale.numpy(), 0.7, scale=1 / 5.0) + scale.log().numpy()).sum()
    expected += np.sum(stats.laplace.logpdf(W.numpy(), ANCHOR.numpy(), scale[groups].numpy()))
    assert found == pytest.approx(expected, rel=1e-12)
    trace = poutine.trace(prior).get_trace(ANCHOR)
    drawn = trace.nodes["scale"]["value"]
    torch.testing.assert_close(drawn, trace.nodes["log_scale"]["value"].exp())
    assert drawn.shape == (2,)


def test_horseshoe_density() -> None:
    local = torch.tensor([0.01, 0.3, 2.0], dtype=torch.float64)
    tau = torch.tensor(0.02, dtype=torch.float64)
    found = log_density(functools.partial(horseshoe, global_scale=0.1), w=W, scale=local, tau=tau)
    expected = stats.halfcauchy.logpdf(0.02, scale=0.1) + np.sum(
        stats.halfcauchy.logpdf(local.numpy())
    )
    expected += np.sum(stats.norm.logpdf(W.numpy(), ANCHOR.numpy(), 0.02 * local.numpy()))
    assert found == pytest.approx(expected, rel=1e-12)


def test_student_t_density() -> None:
    found = log_density(functools.partial(student_t, degrees_of_freedom=3.0, scale=0.1), w=W)
    assert found == pytest.approx(
        np.sum(stats.t.logpdf(W.numpy(), 3.0, ANCHOR.numpy(), 0.1)), rel=1e-12
    )


def test_mixture_density() -> None:
    prior = functools.partial(gaussian_scale_mixture, scales=(0.01, 0.5), shares=(3.0, 1.0))
    parts = [s * stats.norm.pdf(W, ANCHOR, sd) for s, sd in ((0.75, 0.01), (0.25, 0.5))]
    assert log_density(prior, w=W) == pytest.approx(np.log(sum(parts)).sum(), rel=1e-12)


@pytest.mark.parametrize("prior", [LaplaceGamma(), horseshoe, student_t, gaussian_scale_mixture])
def test_samplers_find_every_support(prior: Callable[[Tensor], Tensor]) -> None:
    """A mixture's own support, in torch, is one that no transform leads to."""
    traced = poutine.trace(prior).get_trace(ANCHOR.float())
    for name in traced.stochastic_nodes:
        law, value = traced.nodes[name]["fn"], traced.nodes[name]["value"]
        transform = torch.distributions.biject_to(law.support)
        torch.testing.assert_close(transform(transform.inv(value)), value)


@pytest.mark.parametrize("alpha", [0.01, 0.5, 5.0])
def test_log_gamma_draws(alpha: float) -> None:
    pyro.set_rng_seed(3)
    law = LogGamma(torch.tensor(alpha), torch.tensor(100.0))
    drawn = law.sample((4000,)).double().numpy()
    assert np.isfinite(drawn).all()
    # At alpha = 0.01 the quantiles in log scale, where those of the scale underflow.
    assert stats.kstest(drawn + math.log(100.0), stats.loggamma(alpha).cdf).pvalue > 1e-4
    if alpha == 0.01:
        assert (np.exp(drawn.astype(np.float32)) == 0).mean() > 0.2  # the scales themselves do
        assert drawn.std() == pytest.approx(100.0, rel=0.1)


@pytest.mark.parametrize("log_scale", [-300.0, -95.0, -1.0, 50.0])
@pytest.mark.parametrize("distance", [0.0, 1e-30, 0.3])
def test_densities_at_extreme_scales_are_numbers_or_nil(log_scale: float, distance: float) -> None:
    s = torch.tensor(log_scale, requires_grad=True)
    w = torch.tensor(distance, requires_grad=True)
    value = LaplaceOfLogScale(torch.tensor(0.0), s).log_prob(w)
    ratio = distance * math.exp(-log_scale)
    value.backward()  # type: ignore[no-untyped-call]
    assert s.grad is not None
    assert w.grad is not None
    if ratio > 1e38:
        assert value == -math.inf
    else:
        assert value.item() == pytest.approx(-math.log(2) - log_scale - ratio, rel=1e-5)
        assert s.grad.item() == pytest.approx(ratio - 1, rel=1e-5)
        assert torch.isfinite(w.grad) or (log_scale < -88 and w.grad == -math.inf)
    prior = LogGamma(torch.tensor(0.01), torch.tensor(100.0)).log_prob(torch.tensor(-300.0))
    assert prior.item() == pytest.approx(
        0.01 * (-300 + math.log(100)) - math.lgamma(0.01), rel=1e-5
    )


def test_weights_of_scales_too_small_for_float32_stay_at_the_anchor() -> None:
    law = LaplaceOfLogScale(torch.full((100,), 0.7), torch.full((100,), -200.0))
    assert (law.sample() == 0.7).all()
    unit = LaplaceOfLogScale(torch.zeros(4000), torch.full((4000,), math.log(3.0)))
    pyro.set_rng_seed(1)
    assert stats.kstest(unit.sample().numpy(), stats.laplace(0, 3.0).cdf).pvalue > 1e-4


@pytest.mark.thorough
def test_nuts_finds_the_scales_of_quadrature() -> None:
    alpha, beta, sd = 2.0, 20.0, 0.1
    data = torch.tensor([0.1, 0.4, 1.5])

    def model() -> None:
        w = LaplaceGamma(alpha, beta)(torch.zeros(3))
        pyro.sample("y", dist.Normal(w, sd).to_event(1), obs=data)

    pyro.set_rng_seed(5)
    start = {"w": data.clone(), "log_scale": torch.full((3,), math.log(alpha / beta))}
    # A fixed tree depth of at most 3 is ample, and quick.
    mcmc = MCMC(NUTS(model, max_tree_depth=3), 600, 150, initial_params=start, disable_progbar=True)
    mcmc.run()
    scales = mcmc.get_samples(group_by_chain=True)["log_scale"].double().exp().numpy()
    for k, y in enumerate(data.tolist()):
        exact = laplace_gamma_posterior(y, sd, alpha, beta).scale_mean
        error = mcse_of_mean(scales[..., k])
        assert error < 0.1 * exact
        assert abs(scales[..., k].mean() - exact) < 4.5 * error
