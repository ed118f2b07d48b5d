"""Linear regression: WBIC, the free energy and the order of checkpoints in closed form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from exact import checkpoints_with_gaps, linear_gaussian_posterior
from numpy.typing import NDArray
from torch import nn

import ppl_fe as fe

N, D, GAMMA = 500, 8, 10.0
_RNG = np.random.default_rng(61)
X = _RNG.standard_normal((N, D)) * np.linspace(0.3, 1.5, D)
Y = X @ _RNG.standard_normal(D) + _RNG.standard_normal(N)
DATA = torch.tensor(X, dtype=torch.float32), torch.tensor(Y, dtype=torch.float32)
ANCHORS = checkpoints_with_gaps(X, Y, gamma=GAMMA)
QUIET: dict[str, Any] = {"likelihood": "normal", "compile": "traced", "progress_bar": False}


def network(anchor: NDArray[np.float64]) -> fe.FlatNetwork:
    weight = torch.tensor(anchor[None], dtype=torch.float32)
    return fe.FlatNetwork(nn.Linear(D, 1, bias=False)).with_state({"weight": weight})


@pytest.mark.thorough
@pytest.mark.parametrize("which", [0, 2])  # at the minimum of the loss, and off it
def test_wbic(which: int) -> None:
    found = fe.estimate_free_energy(
        network(ANCHORS[which]),
        DATA,
        localization=GAMMA,
        batch_size=None,
        num_chains=32,
        num_samples=125,
        **QUIET,
    )
    beta = 1 / math.log(N)
    exact = linear_gaussian_posterior(X, Y, ANCHORS[which], gamma=GAMMA, beta=beta)
    assert found.anchor_loss == pytest.approx(exact.anchor_loss, rel=1e-6)
    # λ̂ in nats of WBIC is λ̂/β.
    margin = max(3 * found.wbic_mcse, 0.02 * abs(exact.llc) / beta)
    assert abs(found.wbic - exact.wbic) < margin
    assert found.wbic_mcse < 1.0
    assert abs(found.llc - exact.llc) < max(3 * found.llc_mcse, 0.02 * abs(exact.llc))


@pytest.mark.thorough
def test_wbic_from_minibatches() -> None:
    found = fe.estimate_free_energy(
        network(ANCHORS[0]),
        DATA,
        localization=GAMMA,
        batch_size=128,
        num_chains=64,
        num_samples=125,
        warmup_steps=2000,
        **QUIET,
    )
    beta = 1 / math.log(N)
    exact = linear_gaussian_posterior(X, Y, ANCHORS[0], gamma=GAMMA, beta=beta)
    error = 3 * found.wbic_mcse
    # Gradient noise warms every direction by up to the tolerance, 2 %, and never cools it.
    assert -error < found.wbic - exact.wbic < 0.02 * exact.llc / beta + error
    assert found.wbic_mcse < 2.0


@pytest.mark.thorough
@pytest.mark.parametrize("which", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_free_energy_by_thermodynamic_integration(which: int) -> None:
    found = fe.integrate_free_energy(
        network(ANCHORS[which]), DATA, localization=GAMMA, seed=1, **QUIET
    )
    exact = linear_gaussian_posterior(X, Y, ANCHORS[which], gamma=GAMMA, beta=1.0).free_energy
    assert abs(found.free_energy - exact) < max(3 * found.mcse, 0.2)
    assert found.mcse < 0.5


@pytest.mark.thorough
def test_eight_checkpoints_come_out_in_exactly_the_right_order() -> None:
    shuffled = [3, 7, 0, 5, 1, 6, 2, 4]
    states = {
        f"number {k}": {"weight": torch.tensor(ANCHORS[k][None], dtype=torch.float32)}
        for k in shuffled
    }
    table = fe.rank_checkpoints(
        states,
        nn.Linear(D, 1, bias=False),
        DATA,
        localization=GAMMA,
        batch_size=None,
        num_chains=16,
        num_samples=125,
        **QUIET,
    )
    assert list(table.index) == [f"number {k}" for k in range(8)]
    assert (table["error"] == "").all()
    assert table["p_best"].tolist() == pytest.approx([1.0] + [0.0] * 7, abs=1e-3)
    # Here the loss at the anchor alone would have misled.
    assert not table["anchor_loss"].is_monotonic_increasing
