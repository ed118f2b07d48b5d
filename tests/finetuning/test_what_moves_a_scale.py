"""How hard the data must pull a single weight before its mean scale is more than the prior's."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from ppl_fe.finetuning.bayestune.scale_posterior import ScalePosterior, log_marginal_density


@cache
def grid() -> tuple[Tensor, Tensor, Tensor]:
    """log |Δ| from 1e-30 to 1, the prior's density in it, and E[λ | Δ]."""
    scales = ScalePosterior(dtype=torch.float64)
    log_size = torch.linspace(math.log(1e-30), math.log(1.0), 400_001, dtype=torch.float64)
    size = log_size.exp()
    log_prior = torch.as_tensor(log_marginal_density(size.numpy(), scales.alpha, scales.beta))
    return log_size, (log_prior + log_size).exp(), scales.expected_scale(size)


def ratio(pull: float, curvature: float) -> float:
    """E[λ]/(α/β) at α = 0.01, β = 100 under a log-likelihood pull·β·Δ − ½ curvature·Δ²."""
    log_size, prior, expected_scale = grid()
    size = log_size.exp()
    # Below 1e-30 lies 1e-30^α = half the prior's mass, where the likelihood is 1 and λ is nothing.
    below = 0.5 - torch.trapezoid(prior, log_size)
    sides = [
        prior * (side * 100 * pull * size - 0.5 * curvature * size**2).exp() for side in (1, -1)
    ]
    mass = 2 * below + sum(torch.trapezoid(side, log_size) for side in sides)
    mean = sum(torch.trapezoid(side * expected_scale, log_size) for side in sides)
    return float(mean / mass) / 1e-4


@pytest.mark.parametrize(
    ("pull", "curvature", "expected"),
    [
        (0.0, 0.0, 1.0),  # the prior's own
        # Without a pull the data only hold a weight, and its scale says how weakly.
        (0.0, 1e2, 0.98),
        (0.0, 1e4, 0.73),
        (0.0, 1e6, 0.26),
        # With one it is nothing at a tenth of β, little at β, and all at five times β.
        (0.1, 1e4, 0.73),
        (1.0, 1e4, 0.85),
        (3.0, 1e4, 6.6),
        (5.0, 1e4, 179.0),
    ],
)
def test_a_pull_of_some_three_times_beta(pull: float, curvature: float, expected: float) -> None:
    assert ratio(pull, curvature) == pytest.approx(expected, rel=0.015)
