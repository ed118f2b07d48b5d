"""One call at the defaults on what people write: every mean within 0.1 sd, every sd within 5 %.

Regressions and hierarchies whose posterior is known by quadrature or importance sampling. A funnel
may end in the sentence that names its reparametrisation instead; it must not end in a wrong answer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from exact.hierarchies import Moments, by_importance, group_hierarchy, horseshoe
from numpy.typing import NDArray
from scipy.stats import expon, gamma, halfcauchy, norm, t
from torch import Tensor

import ppl_fe as fe

Array = NDArray[np.float64]
GENERATOR = np.random.default_rng(16)


def hold(draws: xr.DataTree, known: dict[str, Moments]) -> None:
    """Hold every value of the sites against what is known of them."""
    assert draws.attrs["target_missed"] == ""
    assert fe.diagnose(draws).passed
    for name, exact in known.items():
        values = draws.posterior[name].values.astype(np.float64)
        values = values.reshape(*values.shape[:2], -1)
        assert (abs(values.mean((0, 1)) - exact.mean) / exact.sd).max() < 0.1, name
        assert abs(values.std((0, 1)) / exact.sd - 1).max() < 0.05, name


def tensors(*values: Array) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(value, dtype=torch.float32) for value in values)


AGE = GENERATOR.uniform(20, 60, 80)
INCOME = 3 + 0.2 * AGE + 1.5 * GENERATOR.standard_t(3, 80)


def robust_line(x: Tensor, y: Tensor) -> None:
    alpha = pyro.sample("alpha", dist.Normal(0.0, 20.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 5.0))
    sigma = pyro.sample("sigma", dist.Exponential(1.0))
    nu = pyro.sample("nu", dist.Gamma(2.0, 0.1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.StudentT(nu, alpha + beta * x, sigma), obs=y)


def robust_line_known() -> dict[str, Moments]:
    names = ("alpha", "beta", "sigma", "nu")

    def log_density(w: Array) -> Array:
        alpha, beta, sigma, nu = w[:, 0], w[:, 1], np.exp(w[:, 2]), np.exp(w[:, 3])
        prior = norm.logpdf(alpha, 0, 20) + norm.logpdf(beta, 0, 5) + expon.logpdf(sigma)
        prior = prior + gamma.logpdf(nu, 2, scale=10) + w[:, 2] + w[:, 3]
        line = alpha[:, None] + beta[:, None] * AGE
        each: Any = t.logpdf(INCOME, nu[:, None], line, sigma[:, None])
        found: Array = prior + each.sum(1)
        return found

    found = by_importance(
        log_density,
        np.array([3.0, 0.2, 0.3, 1.0]),
        lambda w: np.concatenate([w[:, :2], np.exp(w[:, 2:])], 1),
        num_draws=100_000,
    )
    assert max(found.mean_error.max(), found.sd_error.max()) < 0.015
    return {name: Moments(*(part[k] for part in found.moments)) for k, name in enumerate(names)}


EXPOSURE = 10 ** GENERATOR.uniform(0, 2, 12)
CASES = GENERATOR.poisson(EXPOSURE * np.exp(-1 + 0.6 * GENERATOR.standard_normal(12)))


def rates(exposure: Tensor, cases: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    tau = pyro.sample("tau", dist.Exponential(1.0))
    with pyro.plate("groups", len(cases)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("cases", dist.Poisson(exposure * theta.exp()), obs=cases)


def rates_known() -> dict[str, Moments]:
    return group_hierarchy(
        lambda theta: CASES * theta - EXPOSURE * np.exp(theta),
        lambda mu, tau: norm.logpdf(mu, 0, 2) + expon.logpdf(tau),
        np.linspace(-3.5, 1.5, 41),
        np.exp(np.linspace(np.log(0.01), np.log(4), 50)),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "data", "known"),
    [
        (robust_line, tensors(AGE, INCOME), robust_line_known),
    ],
)
def test_one_call_is_an_answer(
    program: Callable[..., None], data: tuple[Tensor, ...], known: Callable[[], dict[str, Moments]]
) -> None:
    hold(fe.sample(program, *data, progress_bar=False), known())


EFFECT = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERROR = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools(y: Tensor, error: Tensor) -> None:
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, error), obs=y)


def schools_known() -> dict[str, Moments]:
    return group_hierarchy(
        lambda theta: -0.5 * ((theta - EFFECT) / ERROR) ** 2,
        lambda mu, tau: norm.logpdf(mu, 0, 5) + halfcauchy.logpdf(tau, scale=5),
        np.linspace(-16, 25, 71),
        np.exp(np.linspace(np.log(0.01), np.log(400), 110)),
    )


SLOPES, COUNT, GLOBAL = 30, 60, 0.1
# Orthogonal columns: least squares then knows everything that the data say of the slopes.
COLUMNS = np.linalg.qr(GENERATOR.standard_normal((COUNT, SLOPES)))[0] * COUNT**0.5
TRUE = np.where(np.arange(SLOPES) < 3, 2.0, 0.0)
RESPONSE = COLUMNS @ TRUE + GENERATOR.standard_normal(COUNT)


def sparse(x: Tensor, y: Tensor) -> None:
    tau = pyro.sample("tau", dist.HalfCauchy(GLOBAL))
    local = pyro.sample("local", dist.HalfCauchy(torch.ones(x.shape[1])).to_event(1))
    slope = pyro.sample("slope", dist.Normal(0.0, tau * local).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ slope, 1.0), obs=y)


def sparse_known() -> dict[str, Moments]:
    return {"slope": horseshoe(COLUMNS.T @ RESPONSE / COUNT, COUNT**-0.5, GLOBAL)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "data", "known"),
    [
        (rates, tensors(EXPOSURE, CASES.astype(float)), rates_known),
        (schools, tensors(EFFECT, ERROR), schools_known),
        (sparse, tensors(COLUMNS, RESPONSE), sparse_known),
    ],
)
def test_a_funnel_is_an_answer_or_names_its_reparametrisation(
    program: Callable[..., None], data: tuple[Tensor, ...], known: Callable[[], dict[str, Moments]]
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        draws = fe.sample(program, *data, progress_bar=False)
    said: list[Any] = [str(one.message) for one in caught]
    if not draws.attrs["target_missed"]:
        hold(draws, known())
    else:
        assert any("write x = loc + scale * z" in message for message in said), said
        assert not fe.diagnose(draws).passed
