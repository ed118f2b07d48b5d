"""step_size="auto" for the rest of the family: the variance is within what the run predicts."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from exact import mcse_of_mean
from torch import Tensor

import ppl_fe as fe

# What is tested is the size of the step; the draws are judged by their own error bars.
pytestmark = pytest.mark.filterwarnings("ignore:warmup_steps=:RuntimeWarning")

N, B = 60, 6
SD = torch.tensor([1.0, 5.0])
Y = SD * torch.randn(N, 2, generator=torch.Generator().manual_seed(32))
PRECISION = N / SD.double().numpy() ** 2
CURVATURE = 1 + PRECISION
CENTRE = Y.double().mean(0).numpy() * PRECISION / CURVATURE
TOLERANCE = 0.2


def model(y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", N, subsample_size=B):
        pyro.sample("y", dist.Normal(w, SD).to_event(1), obs=pyro.subsample(y, event_dim=1))


def run(kernel: fe.Kernel, num_samples: int = 800, warmup_steps: int = 1500) -> xr.DataTree:
    return fe.sample(
        kernel,
        Y,
        num_samples=num_samples,
        warmup_steps=warmup_steps,
        thinning=10,
        num_chains=8,
        compile="traced",
        progress_bar=False,
    )


@pytest.mark.parametrize(
    "kernel",
    [
        pytest.param(fe.PSGLD, marks=pytest.mark.thorough),
        *(pytest.param(kernel, marks=pytest.mark.slow) for kernel in (fe.SGHMC, fe.SGNHT)),
    ],
)
def test_minibatch_noise_stays_within_the_tolerance(kernel: type[fe.Kernel]) -> None:
    tree = run(kernel(model, tolerance=TOLERANCE))
    assert max(tree.attrs["tuned_excess_temperature"]) <= TOLERANCE * (1 + 1e-3)
    squares = (tree.posterior["w"].values.astype(np.float64) - CENTRE) ** 2 * CURVATURE
    for k in range(2):
        error = mcse_of_mean(squares[..., k])
        ratio = squares[..., k].mean()
        assert 1 - 4 * error < ratio < 1 + TOLERANCE + 4 * error
        assert error < 0.1


def test_curvature_is_measured_in_the_metric_of_psgld() -> None:
    tree = run(fe.PSGLD(model), num_samples=1, warmup_steps=1000)
    found = tree.attrs["tuned_stiffest_curvature"]
    # E ĝ² of a coordinate at stationarity is its curvature plus the noise of its minibatches.
    moment = (
        CURVATURE + N**2 / B * Y.double().var(0, correction=0).numpy() / SD.double().numpy() ** 4
    )
    metric = 1 / (np.sqrt(moment / moment.mean()) + 0.01)
    assert found == pytest.approx([max(metric * CURVATURE)] * 8, rel=0.3)


@pytest.mark.thorough
def test_the_slowest_direction_is_looked_for_in_the_metric_of_psgld() -> None:
    sd = torch.tensor([0.1, 1.0])

    def gaussian() -> None:
        pyro.sample("w", dist.Normal(torch.zeros(2), sd).to_event(1))

    def slowest(kernel: fe.Kernel) -> float:
        tree = fe.sample(kernel, num_samples=1, warmup_steps=4000, num_chains=8, progress_bar=False)
        return float(tree.attrs["tuned_slowest_curvature"][0])

    # E ĝ² is the curvature: 100 and 1, so that G is 0.71 and 6.6 and the condition falls from 100
    # to 10.
    expected = 1 / (1 / (100 + 1) * 2) ** 0.5
    assert 0.6 < slowest(fe.PSGLD(gaussian)) / expected < 1.6
    assert slowest(fe.SGLD(gaussian)) < 0.4 * expected
