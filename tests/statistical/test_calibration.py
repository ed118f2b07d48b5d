"""Simulation-based calibration: parameters drawn from the prior rank uniformly among draws.

Talts, Betancourt, Simpson, Vehtari and Gelman 2018, Validating Bayesian inference algorithms with
simulation-based calibration: draw parameters from the prior and data from the model, sample the
posterior, and count the L draws of a quantity that lie below the value that made the data. If the
sampler is right, the rank is uniform on 0 ... L whatever the quantity, which may look at the
data, too (the log-likelihood here; Modrák et al. 2023).

The model is that of the eight schools, with their own standard errors in tens of points and unit
scales of the priors, in the non-centred form: errors of 9 to 18 say little of a school whose effect
has a prior scale of ten, and there the centred form is a funnel (Papaspiliopoulos, Roberts and
Sköld 2007). A thousand data sets stand side by side in a plate of one program. Their posteriors are
independent, so one chain of 10,000 coordinates is a thousand chains, exact in law; the stiffest of
them sets the step for all.

What it can see. A relative error δ of all posterior standard deviations gives the χ² of K ranks
in ten bins a noncentrality of 2Kδ² for a quantity that is roughly normal. A bias of 5 % in the
variance, the default tolerance, makes that 1.2 at K = 1000: nothing, against the 28 that a p-value
of 0.001 takes; it would need K of 20,000. (And BAOAB's variance has no such bias where the
posterior is Gaussian.) A temperature of 1.3 shows in log tau, whose tail grows longer, and in the
log-likelihood; mu and theta are hardly wider, since the tau that they are drawn with is smaller.

Four quantities at 0.001 each: by Bonferroni, a right sampler fails in four of a thousand seeds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import chisquare
from torch import Tensor

import ppl_fe as fe

Array = NDArray[np.float64]
NUM_SETS, NUM_BINS = 1000, 10
LEAST_P = 0.001
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])[:, None] / 10
NUM_CHAINS, NUM_SAMPLES = 4, 25  # a hundred draws; the first is dropped, for a hundred ranks


def uniformity(draws: Array, truth: Array) -> float:
    """χ² p-value of the ranks of truths (K,) among draws (L, K), in bins of equally many ranks."""
    ranks = (draws < truth).sum(0)
    assert (len(draws) + 1) % NUM_BINS == 0
    counts = np.bincount(ranks * NUM_BINS // (len(draws) + 1), minlength=NUM_BINS)
    return float(chisquare(counts).pvalue)


def test_exact_draws_are_calibrated_and_hot_or_shifted_ones_are_not() -> None:
    # theta ~ N(0, 1), y ~ N(theta, 1): the posterior is N(y/2, 1/2).
    generator = np.random.default_rng(0)
    theta = generator.normal(size=4000)
    y = theta + generator.normal(size=4000)
    noise = generator.normal(size=(99, 4000))
    assert uniformity(y / 2 + np.sqrt(0.5) * noise, theta) > LEAST_P
    assert uniformity(y / 2 + np.sqrt(1.3 * 0.5) * noise, theta) < LEAST_P
    assert uniformity(y / 2 + 0.15 + np.sqrt(0.5) * noise, theta) < LEAST_P
    # A prior of twice the variance: posterior N(2y/3, 2/3).
    assert uniformity(2 * y / 3 + np.sqrt(2 / 3) * noise, theta) < LEAST_P


class Schools(NamedTuple):
    """Parameters and data of K sets: mu, tau (..., K); effects, y (..., 8, K)."""

    mu: Tensor
    tau: Tensor
    effects: Tensor

    def quantities(self, y: Tensor) -> dict[str, Array]:
        """(..., K) each."""
        theta = self.mu[..., None, :] + self.tau[..., None, :] * self.effects
        named = {
            "mu": self.mu,
            "log tau": self.tau.log(),
            "theta": theta[..., 0, :],
            "log-likelihood": dist.Normal(theta, ERRORS).log_prob(y).sum(-2),
        }
        return {name: value.double().numpy() for name, value in named.items()}


def simulate(scale_of_tau: float = 1.0) -> tuple[Schools, Tensor]:
    """K draws of the prior, and the data that they make."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, NUM_SETS, generator=generator)

    truth = Schools(normal(), scale_of_tau * normal().abs(), normal(8))
    return truth, truth.mu + truth.tau * truth.effects + ERRORS * normal(8)


def schools(y: Tensor) -> None:
    """theta = mu + tau · effects; mu ~ N(0, 1), tau ~ half N(0, 1), effects ~ N(0, 1)."""
    with pyro.plate("sets", NUM_SETS):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        with pyro.plate("schools", 8):
            effects = pyro.sample("effects", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mu + tau * effects, ERRORS), obs=y)


def autocorrelation_time(draws: Array) -> float:
    """τ, the mean over sets of draws (C, S, K): S times the variance of chain means over theirs.

    Pooled over a thousand posteriors it is good to 3 %, where each has but a hundred draws; chains
    that have not mixed make it large, too.
    """
    between = draws.mean(1).var(0, ddof=1).mean()
    return float(draws.shape[1] * between / draws.var(1, ddof=1).mean())


def calibrate(temperature: float = 1.0, scale_of_tau: float = 1.0) -> dict[str, float]:
    """The p-value of every quantity, from well-mixed draws of the posteriors of K data sets."""
    truth, y = simulate(scale_of_tau)
    tree = fe.sample(
        fe.BAOAB(schools, step_size="auto", temperature=temperature),
        y,
        num_samples=NUM_SAMPLES,
        num_chains=NUM_CHAINS,
        warmup_steps=1500,
        thinning=150,
        progress_bar=False,
    )
    named = (torch.as_tensor(tree.posterior[name].values) for name in Schools._fields)
    found, exact = Schools(*named).quantities(y), truth.quantities(y)
    result = {}
    for name, draws in found.items():
        tau = autocorrelation_time(draws)
        flat = draws.reshape(-1, NUM_SETS)
        result[name] = uniformity(flat[1:], exact[name])
        print(f"{name}: p = {result[name]:.2g}, ESS {len(flat) / tau:.0f} of {len(flat)} draws")
        assert 0.8 < tau < 1.2, name
    return result


@pytest.mark.slow
def test_the_automatic_step_is_calibrated() -> None:
    assert min(calibrate().values()) > LEAST_P


@pytest.mark.slow
def test_a_hot_chain_is_seen() -> None:
    found = calibrate(temperature=1.3)
    assert min(found["log tau"], found["log-likelihood"]) < LEAST_P


@pytest.mark.slow
def test_a_wrong_prior_is_seen() -> None:
    assert calibrate(scale_of_tau=1.5)["log tau"] < LEAST_P
