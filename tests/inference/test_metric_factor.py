"""Factors of several groups of chains act on each as its own would, and are learnt from enough."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_fe as fe
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.run_plan import RunLength, RunPlan, Target
from ppl_fe.inference.step.metric_factor import (
    MOST_DENSE,
    DenseFactor,
    LowRankFactor,
    group_of,
    grouped,
)
from ppl_fe.inference.step.trajectories import Trajectories
from ppl_fe.inference.warmup.windows import MOST_ROWS, Seen, Windows

D = 5
GENERATOR = torch.Generator().manual_seed(4)


def normals(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def low_rank() -> LowRankFactor:
    axes = torch.linalg.qr(normals(D, 2)).Q
    return LowRankFactor(normals(D).exp(), axes, normals(2).exp())


def dense() -> DenseFactor:
    return DenseFactor(normals(D, D) + 3 * torch.eye(D))


@pytest.mark.parametrize("make", [low_rank, dense])
def test_factors_of_groups_act_on_each_group_alone(make: Any) -> None:
    factors, values = [make(), make(), make()], normals(6, D)
    metric = grouped(factors)
    for name in ("forward", "transpose"):
        each = zip(factors, values.reshape(3, 2, D), strict=True)
        own = torch.cat([getattr(factor, name)(part) for factor, part in each])
        torch.testing.assert_close(getattr(metric, name)(values), own)
    torch.testing.assert_close(
        metric.dual(values[0]), torch.stack([factor.dual(values[0]) for factor in factors])
    )
    for mine, stacked in zip(factors[2], group_of(metric, 2), strict=True):
        assert torch.equal(mine, stacked)
    assert group_of(factors[0], 0) is grouped(factors[:1]) is factors[0]


def test_a_low_rank_factor_is_its_matrix() -> None:
    factor, value = low_rank(), normals(D)
    inner = torch.eye(D) + factor.axes @ torch.diag(factor.stretch - 1) @ factor.axes.mT
    matrix = torch.diag(factor.scale) @ inner
    torch.testing.assert_close(factor.forward(value), matrix @ value)
    torch.testing.assert_close(factor.transpose(value), matrix.mT @ value)
    torch.testing.assert_close(factor.dual(value), torch.linalg.solve(matrix.mT, value))


def test_one_position_teaches_no_metric() -> None:
    def normal() -> None:
        pyro.sample("w", dist.Normal(torch.zeros(3), torch.tensor([1.0, 5.0, 9.0])).to_event(1))

    plan = RunPlan(RunLength(1, 1), num_chains=2, compile="eager")
    chains, windows = fe.MALT(normal).prepare(
        Target(Density(normal), start=torch.zeros(2, 3)), plan
    )
    before = cast(DenseFactor, chains.factor)
    windows.run(lambda phase: None, lambda: False, lambda: None)
    assert torch.equal(cast(DenseFactor, chains.factor).factor, before.factor)


def test_a_large_local_posterior_is_learnt_from_some_of_its_draws() -> None:
    seen: list[int] = []

    class Factor:
        def refined(self, positions: Tensor, gradients: Tensor) -> tuple[Factor, float]:
            seen.extend([len(positions), len(gradients)])
            return self, 1.5

    position = torch.zeros(4, MOST_DENSE + 1)
    chains = SimpleNamespace(position=position, num_chains=4, num_groups=1, factor=Factor())
    windows = Windows(
        cast(Trajectories, chains),
        target_acceptance=0.8,
        step_size=None,
        learns_metric=True,
        of_loss=True,
        num_trajectories=None,
    )
    assert windows._learn(Seen([position] * 300, [position] * 300, [])) == 1.5
    every = 300 * 4 // MOST_ROWS
    assert seen == [300 // every] * 2
