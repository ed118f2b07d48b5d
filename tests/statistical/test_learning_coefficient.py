"""Quadratic losses: the local learning coefficient against that of the discretised chain."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from exact import baoab_stationary_variance, llc, z_score
from numpy.typing import NDArray
from torch import Tensor, nn

import ppl_fe as fe

N, D = 200, 50
N_BETA = N / math.log(N)
# The curvatures of the loss spread over a factor of about three hundred.
X = torch.randn(N, D, generator=torch.Generator().manual_seed(51)) * torch.logspace(0.0, -1.0, D)
CURVATURES = np.linalg.eigvalsh((X.T @ X).double().numpy() / N)


def estimate(
    network: fe.FlatNetwork, data: tuple[Tensor, Tensor], **options: Any
) -> fe.FreeEnergyEstimate:
    fixed: dict[str, Any] = {"likelihood": "normal", "compile": "traced", "progress_bar": False}
    return fe.estimate_free_energy(network, data, **fixed, **options)


def linear_network() -> fe.FlatNetwork:
    module = nn.Linear(D, 1, bias=False)
    nn.init.zeros_(module.weight)
    return fe.FlatNetwork(module)


@pytest.mark.thorough
@pytest.mark.parametrize("gamma", [0.1, pytest.param(1.0, marks=pytest.mark.slow), 10.0])
def test_sgld_at_a_given_step(gamma: float) -> None:
    step_size = 1.0 / (N_BETA * CURVATURES.max() + gamma)  # a bias of a third where stiffest
    found = estimate(
        linear_network(),
        (X, torch.zeros(N)),
        localization=gamma,
        batch_size=None,
        kernel=fe.SGLD,
        step_size=step_size,
        num_chains=32,
        num_samples=125,
    )
    exact = llc(CURVATURES, N_BETA, gamma, step_size)
    assert found.llc_mcse < 0.02 * exact
    assert abs(z_score(found.llc, exact, found.llc_mcse)) < 3
    # Sharp enough: the limit of small steps is told from the law of this step.
    assert z_score(found.llc, llc(CURVATURES, N_BETA, gamma), found.llc_mcse) > 4


@pytest.mark.thorough
@pytest.mark.parametrize(
    "gamma", [1.0, *(pytest.param(other, marks=pytest.mark.slow) for other in (0.1, 10.0))]
)
def test_the_default_step_is_right_within_two_per_cent(gamma: float) -> None:
    found = estimate(
        linear_network(),
        (X, torch.zeros(N)),
        localization=gamma,
        batch_size=None,
        num_chains=8,
        num_samples=600,
    )
    # BAOAB with exact gradients has the variance of a vanishing step at every stable one.
    exact = llc(CURVATURES, N_BETA, gamma)
    assert found.llc_mcse < 0.02 * exact
    assert abs(z_score(found.llc, exact, found.llc_mcse)) < 3
    assert found.llc == pytest.approx(exact, rel=0.02)
    assert found.notes == ()


class Location(nn.Module):
    """y_i ~ N(scale · w, I): the minibatch noise of the gradient is the same at every w."""

    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.w = nn.Parameter(torch.zeros_like(scale))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.w


SCALE = torch.tensor([1.0, 0.7, 0.4, 0.2])
NUM = 120
Y = torch.randn(NUM, 4, generator=torch.Generator().manual_seed(52))
Y = Y - Y.mean(0)  # so that w* = 0 is the minimum
H = SCALE.double().numpy() ** 2
NUM_BETA = NUM / math.log(NUM)


def gradient_noise(size: int) -> NDArray[np.float64]:
    """Variance of the log-posterior's gradient over batches drawn with replacement."""
    spread: NDArray[np.float64] = Y.double().var(0, correction=0).numpy()
    return NUM_BETA**2 / size * H * spread


def location_estimate(size: int, **options: Any) -> fe.FreeEnergyEstimate:
    data = torch.zeros(NUM, 4), Y
    network = fe.FlatNetwork(Location(SCALE))
    return estimate(
        network, data, batch_size=size, **{"num_chains": 64, "num_samples": 125, **options}
    )


@pytest.mark.thorough
def test_sgld_with_minibatch_noise() -> None:
    size, step_size = 6, 0.04
    found = location_estimate(size, kernel=fe.SGLD, step_size=step_size)
    exact = llc(H, NUM_BETA, 1.0, step_size, gradient_noise(size))
    assert abs(z_score(found.llc, exact, found.llc_mcse)) < 3
    # Sharp enough: without the noise's share, the same step would be refuted.
    assert z_score(found.llc, llc(H, NUM_BETA, 1.0, step_size), found.llc_mcse) > 4


@pytest.mark.thorough
def test_baoab_with_minibatch_noise_at_a_given_step() -> None:
    size, step_size = 6, 0.04
    found = location_estimate(size, step_size=step_size)
    friction = found.draws.attrs["tuned_friction"][0]
    variance = [
        baoab_stationary_variance(float(a), step_size, friction, s2=float(s2))
        for a, s2 in zip(NUM_BETA * H + 1.0, gradient_noise(size), strict=True)
    ]
    exact = 0.5 * NUM_BETA * float(H @ np.array(variance))
    assert abs(z_score(found.llc, exact, found.llc_mcse)) < 3
    assert z_score(found.llc, llc(H, NUM_BETA, 1.0), found.llc_mcse) > 4


@pytest.mark.thorough
def test_minibatch_noise_at_the_default_step_stays_within_the_tolerance() -> None:
    found = location_estimate(60, num_chains=192, num_samples=200, warmup_steps=3000)
    assert max(found.draws.attrs["tuned_gradient_noise"]) > 0
    exact = llc(H, NUM_BETA, 1.0)
    error = 3 * found.llc_mcse
    # The stiffest direction is held to 2 %, and the noise is no stronger along the others.
    assert -error < found.llc - exact < 0.02 * exact + error
    assert found.llc_mcse < 0.02 * exact
