"""step_size="auto": the variance is right within what the run itself predicts."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from exact import mcse_of_mean, z_score
from torch import Tensor

import ppl_fe as fe

# What is tested is the size of the step; the draws are judged by their own error bars.
pytestmark = pytest.mark.filterwarnings("ignore:warmup_steps=:RuntimeWarning")


def run(
    kernel: fe.Kernel, *data: object, warmup_steps: int, num_samples: int, num_chains: int = 8
) -> xr.DataTree:
    return fe.sample(
        kernel,
        *data,
        num_samples=num_samples,
        warmup_steps=warmup_steps,
        thinning=10,
        num_chains=num_chains,
        compile="traced",
        progress_bar=False,
    )


def ratios(tree: xr.DataTree, centre: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """(D, 2): variance over the exact one, and its standard error, per coordinate."""
    squares = (tree.posterior["w"].values.astype(np.float64) - centre) ** 2 / variance
    return np.array(
        [(squares[..., k].mean(), mcse_of_mean(squares[..., k])) for k in range(len(variance))]
    )


@pytest.mark.parametrize(
    "condition",
    [
        *(pytest.param(condition, marks=pytest.mark.slow) for condition in (1.0, 100.0)),
        pytest.param(1e4, marks=pytest.mark.thorough),
    ],
)
def test_quadratics_of_any_condition_number(condition: float) -> None:
    curvature = torch.logspace(0.0, float(np.log10(condition)), 6)

    def model() -> None:
        pyro.sample("w", dist.Normal(0.0, curvature.rsqrt()).to_event(1))

    tree = run(fe.BAOAB(model), warmup_steps=2000, num_samples=1000)
    assert max(tree.attrs["tuned_excess_temperature"]) == 0.0
    assert tree.attrs["tuned_stiffest_curvature"] == pytest.approx([condition] * 8, rel=0.05)
    for ratio, error in ratios(tree, np.zeros(6), 1 / curvature.double().numpy()):
        assert abs(z_score(ratio, 1.0, error)) < 4
        assert error < 0.15  # the slowest direction was crossed many times


@pytest.mark.parametrize(
    ("kernel", "tolerance"),
    [
        (fe.SGLD, 0.3),
        pytest.param(fe.SGLD, 0.05, marks=pytest.mark.slow),
        pytest.param(fe.BAOAB, 0.3, marks=pytest.mark.thorough),
        pytest.param(fe.BAOAB, 0.05, marks=pytest.mark.slow),
    ],
)
def test_minibatch_noise_stays_within_the_tolerance(
    kernel: type[fe.Kernel], tolerance: float
) -> None:
    n, size = 60, 6
    sd = torch.tensor([1.0, 2.0])
    y = sd * torch.randn(n, 2, generator=torch.Generator().manual_seed(31))

    def model(y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("data", n, subsample_size=size):
            batch = pyro.subsample(y, event_dim=1)
            pyro.sample("y", dist.Normal(w, sd).to_event(1), obs=batch)

    precision = n / sd.double().numpy() ** 2
    curvature = 1 + precision
    centre = y.double().mean(0).numpy() * precision / curvature
    sampler = kernel(model, tolerance=tolerance)
    tree = run(sampler, y, warmup_steps=1000, num_samples=200, num_chains=16)
    predicted = max(tree.attrs["tuned_excess_temperature"])
    assert predicted <= tolerance * (1 + 1e-3)
    # What the run measured is the truth, up to the upper quantile that it takes.
    noise = n**2 / size * float(y[:, 0].double().var(correction=0))
    assert 0.6 * noise < tree.attrs["tuned_gradient_noise"][0] < 4 * noise
    assert tree.attrs["tuned_stiffest_curvature"] == pytest.approx([curvature[0]] * 16, rel=0.05)
    for ratio, error in ratios(tree, centre, 1 / curvature):
        assert 1 - 4 * error < ratio < 1 + tolerance + 4 * error
