"""Local posteriors by exact trajectories: what "auto" chooses, and metrics of groups."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from exact import linear_gaussian_posterior, z_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ppl_fe as fe
from ppl_fe.data import as_data
from ppl_fe.free_energy.chain_options import ChainOptions
from ppl_fe.free_energy.local_chains import sample_local_posteriors
from ppl_fe.inference.run_plan import RunLength

N, D = 60, 3
_RNG = np.random.default_rng(5)
X = _RNG.standard_normal((N, D)) * np.array([0.03, 1.0, 3.0])
Y = X @ np.ones(D) + _RNG.standard_normal(N)
DATA = torch.tensor(X, dtype=torch.float32), torch.tensor(Y, dtype=torch.float32)
BEST = np.linalg.lstsq(X, Y, rcond=None)[0]
MANY = torch.zeros(5000, D), torch.zeros(5000)
LOADER = DataLoader(TensorDataset(*DATA), batch_size=20)


def network() -> fe.FlatNetwork:
    weight = torch.tensor(BEST[None], dtype=torch.float32)
    return fe.FlatNetwork(nn.Linear(D, 1, bias=False)).with_state({"weight": weight})


@pytest.mark.parametrize(
    ("options", "data", "kernel", "batch_size"),
    [
        ({}, DATA, fe.MALT, None),
        ({}, MANY, fe.BAOAB, 256),
        ({"batch_size": None}, MANY, fe.MALT, None),
        ({"batch_size": 20}, DATA, fe.BAOAB, 20),
        ({"step_size": 1e-3}, DATA, fe.BAOAB, None),
        ({"length": RunLength(100)}, MANY, fe.BAOAB, 256),
        ({"save_to": "somewhere"}, DATA, fe.MALT, None),
        ({"chain_method": "parallel"}, DATA, fe.BAOAB, None),
        ({"kernel": fe.SGLD}, MANY, fe.SGLD, 256),
        ({"kernel": fe.MALT, "length": RunLength(100)}, MANY, fe.MALT, None),
        ({}, LOADER, fe.BAOAB, None),
    ],
)
def test_what_auto_comes_to(
    options: dict[str, Any], data: Any, kernel: type, batch_size: int | None
) -> None:
    chosen = ChainOptions(**options).chosen(as_data(data))
    assert chosen.kernel is kernel
    assert chosen.batch_size == batch_size
    assert chosen.chosen(as_data(data)) == chosen


def test_minibatches_for_exact_gradients_are_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size=20 of 60 examples: MALT needs exact grad"):
        fe.estimate_free_energy(network(), DATA, kernel=fe.MALT, batch_size=20)
    with pytest.raises(TypeError, match=r"kernel must be a sampler's class, such as fe\.BAOAB"):
        fe.estimate_free_energy(network(), DATA, kernel="BAOAB")  # type: ignore[arg-type]


@pytest.mark.thorough
def test_the_free_energy_itself_at_the_defaults() -> None:
    """Its rungs are groups whose curvatures differ a million times: each needs its own metric."""
    found = fe.integrate_free_energy(
        network(), DATA, likelihood="normal", num_rungs=12, progress_bar=False
    )
    exact = linear_gaussian_posterior(X, Y, BEST, gamma=1.0, beta=1.0).free_energy
    assert found.draws.attrs["sampler"] == "MALT"
    assert found.ladder["r_hat"].iloc[1:].max() < 1.05
    assert abs(found.free_energy - exact) < 4 * found.mcse + found.ladder_error
    assert found.mcse < 0.1


def test_groups_have_metrics_and_temperatures_of_their_own() -> None:
    ladder = torch.tensor([1e-3, 1.0], dtype=torch.float64)
    chains = sample_local_posteriors(
        network(),
        network().anchor[None],
        DATA,
        ChainOptions(
            likelihood="normal",
            kernel=fe.MALT,
            length=RunLength(500, 200),
            progress_bar=False,
        ),
        ladder=ladder,
    )
    stats, losses = chains.draws.sample_stats, chains.draws.sample_stats.loss.values
    assert (stats.acceptance_rate.mean("draw") > 0.6).all()
    for group, beta in enumerate(ladder.tolist()):
        exact = linear_gaussian_posterior(X, Y, BEST, gamma=1.0, beta=beta)
        own = losses[4 * group : 4 * group + 4].astype(float)
        error = own.std() / math.sqrt(own.size / 4)  # an ESS of a quarter of the draws, or more
        assert abs(z_score(own.mean(), exact.expected_loss, error)) < 4.5
        sd = chains.draws.posterior.w.values[4 * group : 4 * group + 4].std((0, 1))
        assert sd == pytest.approx(np.sqrt(exact.covariance.diagonal()), rel=0.15)
    for name in ("configurational_temperature", "stiff_temperature"):
        assert stats[name].values.reshape(2, -1).mean(1) == pytest.approx([1.0, 1.0], abs=0.15)


@pytest.mark.slow
def test_one_chain_after_another_gives_the_same_answer() -> None:
    found = fe.estimate_free_energy(
        network(), DATA, likelihood="normal", chain_method="sequential", progress_bar=False
    )
    exact = linear_gaussian_posterior(X, Y, BEST, gamma=1.0, beta=1 / math.log(N))
    assert found.notes == ()
    assert abs(z_score(found.llc, exact.llc, found.llc_mcse)) < 4.5
