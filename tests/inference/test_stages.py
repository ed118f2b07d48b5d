"""A run in stages: whoever goes on does so from where its chains are, and the others end."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import ppl_fe as fe
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.run.stages import Stages
from ppl_fe.inference.run_plan import RunLength, RunPlan, Target
from ppl_fe.inference.warmup.curvature import FIRST_ITERATIONS

Y = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)


def middle(y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros_like(y[0]), 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(w, 1.0), obs=y)


def test_a_group_goes_on_where_its_chains_are() -> None:
    """At temperature 0 a chain descends by w <- w + (step/2)(sum of y - 4w), without a choice."""
    start = torch.tensor([[0.0], [1.0], [2.0], [3.0]], dtype=torch.float64)
    kernel = fe.SGLD(middle, step_size=0.1, temperature=0.0)
    plan = RunPlan(RunLength(6, warmup_steps=0), num_chains=4, compile="eager")
    stages = Stages(kernel, Target(Density(middle, (Y,)), start=start, num_groups=2), plan)
    first, second = stages.begin(), stages.go_on([1], 5)

    def losses(chain: int) -> list[float]:
        """The mean loss of a datum at each step of a run of thirteen."""
        w, found = float(start[chain]), []
        for _ in range(13):
            found.append(0.5 * float((Y - w).square().mean()) + 0.5 * float(np.log(2 * np.pi)))
            w += 0.05 * (float(Y.sum()) - 4 * w)
        return found

    third = stages.go_on([1], 2)
    assert list(first.losses) == [0, 1]
    assert list(second.losses) == list(third.losses) == [1]
    for place, chain in enumerate((2, 3)):
        whole = np.concatenate([stage.losses[1][place] for stage in (first, second, third)])
        np.testing.assert_allclose(whole, losses(chain), rtol=1e-12)
    direction = 2 * FIRST_ITERATIONS  # along which the first stage measures the temperature
    assert [stage.num_gradients for stage in (first, second, third)] == [direction + 6, 5, 2]


def test_chains_that_go_on_are_not_started_anew() -> None:
    """A start about a centre takes tens of gradients: a stage that goes on has its own alone."""
    center = torch.zeros(4, 1, dtype=torch.float64)
    target = Target(
        Density(middle, (Y,)), start=center, center=center, least_curvature=1.0, num_groups=2
    )
    plan = RunPlan(RunLength(6, warmup_steps=20), num_chains=4, compile="eager")
    stages = Stages(fe.MALT(middle), target, plan)
    stages.begin()
    second = stages.go_on([1], 5)
    assert stages.standing is not None
    steps = int(stages.standing.report["num_steps"][0])
    assert second.num_gradients == 1 + 5 * steps
