"""Runs that are long enough by design pass every check; no seed was chosen."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from cases.runs import Y, gaussian, mean_of
from torch import Tensor, nn

import ppl_fe as fe

GENERATOR = torch.Generator().manual_seed(11)
X = torch.randn(200, 3, generator=GENERATOR)
OUTCOME = X @ torch.tensor([1.0, -0.5, 0.0]) + 0.5 * torch.randn(200, generator=GENERATOR)
LABEL = (torch.rand(200, generator=GENERATOR) < torch.sigmoid(X[:, 0])).float()


def regression(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", len(y), subsample_size=50) as rows:
        pyro.sample("y", dist.Normal(x[rows] @ w, 0.5), obs=y[rows])


def logistic(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", len(y), subsample_size=100) as rows:
        pyro.sample("y", dist.Bernoulli(logits=x[rows] @ w), obs=y[rows])


def beta_binomial() -> None:
    share = pyro.sample("share", dist.Beta(2.0, 3.0))
    pyro.sample("successes", dist.Binomial(20, share), obs=torch.tensor(7.0))


def composition() -> None:
    pyro.sample("shares", dist.Dirichlet(torch.tensor([3.0, 4.0, 5.0])))
    pyro.sample("rate", dist.Gamma(5.0, 2.0))


def quick() -> None:
    pyro.sample("a", dist.Normal(0.0, 1.0).expand([200]).to_event(1))
    pyro.sample("b", dist.Normal(1.0, 1.2).expand([60]).to_event(1))


def long_enough(kernel: Callable[[], fe.Kernel], *data: Any, seed: int) -> xr.DataTree:
    """300 draws of 16 chains, two relaxation times apart, after ten: ESS 200 and more a chain.

    At that length split R-hat of a well-mixed scalar is above 1.01 less than once in 10⁶ times:
    F ~ χ²₃₁/31 would have to exceed 100 (0.02 + 1/150) = 2.7.
    """
    settings: dict[str, Any] = {"num_chains": 16, "compile": "traced", "progress_bar": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ppl_fe.inference.sampling._warn_short_warm_up", lambda _: None)
        pilot = fe.sample(
            kernel(), *data, num_samples=1, warmup_steps=600, seed=seed + 1000, **settings
        )
    relaxation = float(np.max(pilot.attrs["tuned_relaxation_steps"]))
    return fe.sample(
        kernel(),
        *data,
        num_samples=300,
        warmup_steps=max(600, ceil(10 * relaxation)),
        thinning=ceil(2 * relaxation),
        seed=seed,
        **settings,
    )


def free_energy(seed: int, hidden: int = 0) -> Any:
    """At the exact minimum of a noise-free teacher, near which γ = 100 keeps the chains."""
    torch.manual_seed(seed)
    layers = [nn.Linear(3, hidden), nn.Tanh(), nn.Linear(hidden, 1)] if hidden else []
    module = nn.Sequential(*layers) if layers else nn.Linear(3, 1)
    network = fe.FlatNetwork(module)
    with torch.no_grad():
        targets = network(network.anchor, X).squeeze(-1)
    return fe.estimate_free_energy(
        network,
        (X, targets),
        likelihood="normal",
        localization=100.0,
        batch_size=None,
        num_chains=16,
        num_samples=300,
        thinning=12,
        warmup_steps=500,
        check_half_step=True,
        compile="traced",
        seed=seed,
        progress_bar=False,
    )


CASES: dict[str, Callable[[int], Any]] = {
    "gaussian, BAOAB": lambda seed: long_enough(lambda: fe.BAOAB(gaussian), seed=seed),
    "gaussian, SGNHT": lambda seed: long_enough(lambda: fe.SGNHT(gaussian), seed=seed),
    "gaussian, SGHMC": lambda seed: long_enough(
        lambda: fe.SGHMC(gaussian, tolerance=0.08), seed=seed
    ),
    "gaussian, SGLD, dense": lambda seed: long_enough(
        lambda: fe.SGLD(gaussian, metric="dense", tolerance=0.08), seed=seed
    ),
    "beta-binomial, BAOAB": lambda seed: long_enough(lambda: fe.BAOAB(beta_binomial), seed=seed),
    "beta-binomial, PSGLD": lambda seed: long_enough(lambda: fe.PSGLD(beta_binomial), seed=seed),
    "composition, BAOAB, T=0.5": lambda seed: long_enough(
        lambda: fe.BAOAB(composition, temperature=0.5), seed=seed
    ),
    "mean, SGLD": lambda seed: long_enough(
        lambda: fe.SGLD(lambda y: mean_of(y, 30), tolerance=0.08), Y, seed=seed
    ),
    "regression, BAOAB": lambda seed: long_enough(
        lambda: fe.BAOAB(regression, gradient="control_variate"), X, OUTCOME, seed=seed
    ),
    "regression, SGLD": lambda seed: long_enough(
        lambda: fe.SGLD(regression, gradient="control_variate"), X, OUTCOME, seed=seed
    ),
    "logistic, SGHMC": lambda seed: long_enough(
        lambda: fe.SGHMC(logistic, gradient="control_variate"), X, LABEL, seed=seed
    ),
    "wide, BAOAB": lambda seed: long_enough(lambda: fe.BAOAB(quick), seed=seed),
    "linear, free energy": free_energy,
    "network, free energy": lambda seed: free_energy(seed, hidden=30),
}
QUICK = [("gaussian, BAOAB", 0), ("linear, free energy", 0)]
RUNS = [(name, seed) for name in CASES for seed in (0, 1)]


def judge(name: str, seed: int) -> fe.Diagnosis:
    verdict = fe.diagnose(CASES[name](seed), difference=20.0)
    print(verdict)
    return verdict


@pytest.mark.parametrize(
    ("name", "seed"), [QUICK[0], pytest.param(*QUICK[1], marks=pytest.mark.thorough)]
)
def test_two_that_are_quick_pass(name: str, seed: int) -> None:
    assert judge(name, seed).failures == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "seed"), [run for run in RUNS if run not in QUICK])
def test_all_pass(name: str, seed: int) -> None:
    assert judge(name, seed).failures == []
