"""BAOAB on a conjugate model: exact without gradient noise, as predicted with it."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import xarray as xr
from cases.conjugate import CENTRE, CURVATURE, NOISE, PROBABILITY, B, Y, conjugate, probability
from exact import baoab_stationary_variance, mcse_of_mean, z_score

import ppl_fe as fe


def run(kernel: fe.Kernel, *data: object, num_samples: int = 750, thinning: int = 2) -> xr.DataTree:
    return fe.sample(
        kernel,
        *data,
        num_samples=num_samples,
        warmup_steps=500,
        thinning=thinning,
        num_chains=32,
        compile="traced",
        progress_bar=False,
    )


def variance_scores(tree: xr.DataTree, variances: list[float]) -> list[float]:
    squares = (tree.posterior["mean"].values.astype(np.float64) - CENTRE) ** 2
    return [
        z_score(squares[..., k].mean(), variance, mcse_of_mean(squares[..., k]))
        for k, variance in enumerate(variances)
    ]


@pytest.mark.thorough
@pytest.mark.parametrize(("size", "friction"), [(B, 2.0), (B, 12.0), (None, 2.0), (None, 12.0)])
def test_mean_and_variance_of_the_discretised_chain(size: int | None, friction: float) -> None:
    step_size, temperature = 0.06, 1.6  # eps a = 1.9: SGLD would be off by 87 %
    kernel = fe.BAOAB(conjugate, step_size=step_size, friction=friction, temperature=temperature)
    tree = run(kernel, Y, size)
    noise = NOISE if size else 0.0 * NOISE
    exact = [
        baoab_stationary_variance(float(a), step_size, friction, temperature, float(s2))
        for a, s2 in zip(CURVATURE, noise, strict=True)
    ]
    assert max(map(abs, variance_scores(tree, exact))) < 4
    values = tree.posterior["mean"].values.astype(np.float64)
    for k in range(2):
        x = values[..., k]
        assert abs(z_score(x.mean(), CENTRE[k], mcse_of_mean(x))) < 4
    if size:  # sharp enough to see the noise
        assert max(map(abs, variance_scores(tree, list(temperature / CURVATURE)))) > 10


@pytest.mark.thorough
def test_a_probability_on_its_logit_scale() -> None:
    tree = run(fe.BAOAB(probability, step_size=0.02, friction=5.0), thinning=4)
    p = tree.posterior["p"].values.astype(np.float64)
    mean, variance = PROBABILITY
    square = (p - mean) ** 2
    assert abs(z_score(p.mean(), mean, mcse_of_mean(p))) < 4
    assert abs(z_score(square.mean(), variance, mcse_of_mean(square))) < 4
    assert mcse_of_mean(square) < 0.05 * variance


def test_a_support_that_depends_on_another_site() -> None:
    def model() -> None:
        top = pyro.sample("top", dist.Gamma(6.0, 2.0))
        pyro.sample("x", dist.Uniform(0.0, top))

    tree = run(fe.BAOAB(model, step_size=0.05, friction=2.0), num_samples=300, thinning=4)
    top, x = (tree.posterior[name].values.astype(np.float64) for name in ("top", "x"))
    moments = [(top, 3.0), (top**2, 10.5), (x, 1.5), (x**2, 3.5), (x / top, 0.5)]
    for values, truth in moments:
        assert abs(z_score(values.mean(), truth, mcse_of_mean(values))) < 4
