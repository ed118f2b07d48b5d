"""Scales at several weights of the data, by minibatches with control variates, and quadrature."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import laplace_gamma_posterior
from torch import Tensor, nn

import ppl_fe as fe

NUM_WEIGHTS, NUM_MOVED, NUM_ROWS, SD = 300, 50, 64, 0.8


class Slopes(nn.Module):
    """f(w, x) = w ∘ x: a row of data knows each weight to a precision of its own, x²/SD²."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(NUM_WEIGHTS))

    def forward(self, x: Tensor) -> Tensor:
        return self.w * x


def observed(output: Tensor, targets: Tensor) -> object:
    return pyro.sample("y", dist.Normal(output, SD).to_event(1), obs=targets)


@pytest.mark.thorough
@pytest.mark.parametrize("times", [*(pytest.param(k, marks=pytest.mark.slow) for k in (1, 5)), 40])
def test_scales_agree_with_quadrature_at_every_weight(times: int) -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.rand(NUM_ROWS, NUM_WEIGHTS, generator=generator) + 0.5
    moved = torch.zeros(NUM_WEIGHTS)
    moved[:NUM_MOVED] = torch.linspace(0.9, 2.5, NUM_MOVED)
    y = moved * x + SD * torch.randn(NUM_ROWS, NUM_WEIGHTS, generator=generator)
    found = fe.select_parameters(
        fe.FlatNetwork(Slopes()),
        (x, y),
        likelihood=observed,
        rule=fe.BayesTune(
            scales="expected",
            data_size=float(times * NUM_ROWS),
            gradient="control_variate",
            num_samples=200,
            warmup_steps=400,
            thinning=4,
        ),
        sparsity=NUM_MOVED / NUM_WEIGHTS,
        batch_size=16,
        progress_bar=False,
    )
    assert found.scale_mean is not None
    assert found.mcse is not None
    precision = x.double().square().sum(0)
    centre = (x * y).double().sum(0) / precision
    sd = SD / (times * precision).sqrt()
    exact = np.array(
        [
            laplace_gamma_posterior(one, own, 0.01, 100.0).scale_mean
            for one, own in zip(centre.tolist(), sd.tolist(), strict=True)
        ]
    )[:NUM_MOVED]
    mean, error = (values[:NUM_MOVED].double().numpy() for values in (found.scale_mean, found.mcse))
    z = (mean - exact) / error
    print(f"N = {times} n: max |z| {np.abs(z).max():.2f}, rms {np.sqrt(np.square(z).mean()):.2f}")
    assert (error < 0.1 * exact).all()
    assert np.abs(z).max() < 4.5
