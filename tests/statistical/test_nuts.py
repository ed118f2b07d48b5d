"""The local posterior of a small network: Pyro's NUTS and BAOAB see the same one."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pytest
import torch
from exact import mcse_of_mean
from pyro.infer import MCMC, NUTS
from torch import nn

import ppl_fe as fe
from ppl_fe.networks.flat import FlatNetwork


@pytest.mark.slow
def test_nuts_and_baoab_agree_on_a_small_network() -> None:
    torch.manual_seed(41)
    x = torch.randn(100, 2)
    network = FlatNetwork(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)))
    y = network(network.anchor, x)[:, 0] + torch.randn(100)
    model = fe.models.local_posterior(network, "normal", localization=10.0, batch_size=None)

    pyro.set_rng_seed(42)
    # A fixed tree depth of at most 4 is ample: the posterior's condition number is about ten.
    nuts = MCMC(NUTS(model, max_tree_depth=4), 800, 150, disable_progbar=True)
    nuts.run(x, y)
    reference = nuts.get_samples(group_by_chain=True)["w"].double().numpy()
    ours = fe.sample(
        fe.BAOAB(model, step_size=0.005, friction=6.0),
        x,
        y,
        num_samples=300,
        warmup_steps=300,
        thinning=10,
        num_chains=40,
        initial_params={"w": network.anchor.expand(40, -1)},
        compile="traced",
        progress_bar=False,
    )
    draws = ours.posterior["w"].values.astype(np.float64)
    assert reference.shape[-1] == draws.shape[-1] == network.num_parameters == 13

    centre = reference.mean((0, 1))
    moved = 0.0
    for k in range(13):
        error = math.hypot(mcse_of_mean(draws[..., k]), mcse_of_mean(reference[..., k]))
        difference = draws[..., k].mean() - centre[k]
        # 13 comparisons: beyond 4 once in a thousand.
        assert abs(difference) / error < 4
        squares = [(values[..., k] - centre[k]) ** 2 for values in (draws, reference)]
        variance = squares[1].mean()
        error = math.hypot(*map(mcse_of_mean, squares))
        assert abs(squares[0].mean() - variance) < 0.05 * variance + 3 * error
        moved = max(moved, abs(centre[k] - network.anchor[k].item()) / math.sqrt(variance))
    assert moved > 0.1  # the data did pull the posterior off its anchor
