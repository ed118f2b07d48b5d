"""Deep linear networks at their most singular point, with step_size="auto".

`pytest -s` shows the table, with Aoyagi's asymptotic coefficient (2024) beside.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from exact import deep_linear_learning_coefficient, z_score
from exact.deep_linear import deep_linear_gibbs_llc, rank_blocks
from torch import Tensor, nn

import ppl_fe as fe

N = 10**6
N_BETA = N / math.log(N)


class DeepLinear(nn.Module):
    def __init__(self, widths: list[int], rank: int) -> None:
        super().__init__()
        blocks = rank_blocks(widths, rank)
        self.factors = nn.ParameterList(torch.from_numpy(block) for block in blocks)

    def forward(self, x: Tensor) -> Tensor:
        for factor in self.factors:
            x = x @ factor.T
        return x


def estimate(
    widths: list[int], rank: int, dtype: torch.dtype = torch.float64, **options: Any
) -> fe.FreeEnergyEstimate:
    """Rows whose second moment is the identity stand for n of them: β makes up for their number."""
    module = DeepLinear(widths, rank).to(dtype)
    x = math.sqrt(widths[0]) * torch.eye(widths[0], dtype=dtype)
    with torch.no_grad():
        y = module(x)
    return fe.estimate_free_energy(
        fe.FlatNetwork(module),
        (x, y),
        likelihood="normal",
        inverse_temperature=N_BETA / widths[0],
        batch_size=None,
        step_size="auto",
        compile="compiled",
        progress_bar=False,
        **options,
    )


def show(widths: list[int], rank: int, found: fe.FreeEnergyEstimate, exact: float) -> None:
    asymptotic = deep_linear_learning_coefficient(widths, rank)
    print(
        f"{widths} r={rank}  γ {found.localization:g}  ε {found.step_size:.2g}  "
        f"llc {found.llc:.3f} ± {found.llc_mcse:.3f}  "
        f"exact {exact:.3f} ({found.llc / exact - 1:+.2%})  "
        f"asymptotic {asymptotic:.1f} ({found.llc / asymptotic - 1:+.2%})  "
        f"R-hat {found.r_hat:.4f}  ESS {found.ess:.0f}"
    )


TEN, DEEP = ([10, 10, 10], 3), ([4, 5, 6, 5, 4], 2)


@pytest.mark.parametrize(
    ("widths", "rank", "num_chains"),
    [
        pytest.param(*TEN, 16, marks=pytest.mark.slow, id="ten"),
        pytest.param(*DEEP, 64, marks=pytest.mark.slow, id="deep"),
    ],
)
def test_a_tighter_localiser_against_exact_gibbs(
    widths: list[int], rank: int, num_chains: int
) -> None:
    # Weights that wander less are less stiff and relax sooner: seconds where γ = 1 takes minutes.
    found = estimate(
        widths,
        rank,
        localization=10.0,
        num_chains=num_chains,
        num_samples=400,
        thinning=40,
        warmup_steps=6000,
    )
    exact = deep_linear_gibbs_llc(widths, rank, n_beta=N_BETA, gamma=10.0)
    show(widths, rank, found, exact.llc)
    assert found.llc_mcse < 0.01 * exact.llc
    assert abs(z_score(found.llc, exact.llc, math.hypot(found.llc_mcse, exact.mcse))) < 4
    if widths == DEEP[0]:  # sharp enough to refute the limit of many data
        limit = deep_linear_learning_coefficient(widths, rank)
        assert z_score(found.llc, limit, found.llc_mcse) < -6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("widths", "rank", "earlier", "num_samples", "worst_r_hat"),
    [(*TEN, 43.74, 500, 1.01), (*DEEP, 7.74, 1300, 1.03)],
    ids=["ten", "deep"],
)
def test_the_learning_coefficient(
    widths: list[int], rank: int, earlier: float, num_samples: int, worst_r_hat: float
) -> None:
    # Few chains and long ones: R-hat - 1 comes out near one over the effective draws of each, and a
    # relaxation of the deep network takes some 4e4 steps, so 1.01 would cost it twice this run.
    found = estimate(
        widths,
        rank,
        localization=1.0,
        num_chains=12,
        num_samples=num_samples,
        thinning=1000,
        warmup_steps=120_000,
    )
    exact = deep_linear_gibbs_llc(widths, rank, n_beta=N_BETA)
    show(widths, rank, found, exact.llc)
    assert found.llc_mcse < 0.01 * earlier
    assert found.llc == pytest.approx(earlier, rel=0.03)
    assert abs(z_score(found.llc, exact.llc, math.hypot(found.llc_mcse, exact.mcse))) < 4
    assert found.r_hat < worst_r_hat


@pytest.mark.slow
def test_a_hundred_thousand_parameters() -> None:
    # γ = 50 holds the factors' norms near four. At γ = 1 they would be near thirty, the curvature
    # 2e10 and one relaxation 3e5 steps. The exact value at this γ is 2.6 % below the limit.
    widths, rank, gamma = [150, 200, 200, 150], 50, 50.0
    found = estimate(
        widths,
        rank,
        torch.float32,
        localization=gamma,
        num_chains=4,
        num_samples=100,
        thinning=100,
        warmup_steps=6000,
    )
    exact = deep_linear_gibbs_llc(
        widths, rank, n_beta=N_BETA, gamma=gamma, num_chains=1, num_samples=16, warmup_steps=8
    )
    show(widths, rank, found, exact.llc)
    assert found.llc == pytest.approx(deep_linear_learning_coefficient(widths, rank), rel=0.05)
    assert found.llc_mcse < 0.01 * exact.llc
    assert found.llc == pytest.approx(exact.llc, rel=0.005)
    assert found.r_hat < 1.05
