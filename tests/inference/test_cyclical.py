"""Cyclical steps with exploration: cold descents to other modes, and draws of sampling alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import kstest
from scipy.stats import t as student_t

import ppl_fe as fe
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.run_plan import RunLength, RunPlan, Target
from ppl_fe.inference.schedules import Cyclical


def standard() -> None:
    pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))


def two_modes() -> None:
    """Student's t of ten degrees of freedom and scale ½ about −5 and 5, in equal parts."""
    w = pyro.sample("w", dist.Normal(0.0, 1e3))
    modes = dist.StudentT(10.0, torch.tensor([-5.0, 5.0]), 0.5)
    pyro.factor("modes", modes.log_prob(w).logsumexp(-1))


def sample(kernel: fe.Kernel, **changed: Any) -> Any:
    options: dict[str, Any] = {"warmup_steps": 0, "num_chains": 20, "compile": "eager"}
    return fe.sample(kernel, **{**options, "progress_bar": False, **changed})


@pytest.mark.parametrize("thinning", [1, 3])
def test_no_draw_of_exploration_is_kept(thinning: int) -> None:
    # Cycles of 40 steps: 16 explore, 24 sample, so 24/thinning draws come of each.
    schedule = Cyclical(0.1, num_steps=200, num_cycles=5, exploration=0.4)
    per_cycle = 24 // thinning
    tree = sample(
        fe.SGLD(standard, step_size=schedule), num_samples=5 * per_cycle, thinning=thinning
    )
    kept = tree.sample_stats["step_size"].values[0]
    steps = [
        cycle * 40 + 16 + thinning * (k + 1) - 1 for cycle in range(5) for k in range(per_cycle)
    ]
    np.testing.assert_allclose(kept, [schedule(step) for step in steps], rtol=1e-6)
    assert not any(schedule.explores(step) for step in steps)


def test_exploration_descends_without_noise_and_sampling_has_it() -> None:
    schedule = Cyclical(0.1, num_steps=80, num_cycles=2, exploration=0.25)
    kernel = fe.SGLD(standard, step_size=schedule, temperature=2.0)
    plan = RunPlan(RunLength(80, warmup_steps=0), num_chains=3, seed=1, compile="eager")
    chains, adaptation = kernel.prepare(Target(Density(standard)), plan)
    cold = []
    for step in range(80):
        adaptation.before_step()
        before = chains.position.clone()
        chains.advance()
        drift = before * (1 - schedule(step) / 2)
        still = torch.allclose(chains.position, drift, rtol=1e-5, atol=1e-7)
        temperature = float(chains.settings["temperature"][0])
        assert temperature == (0.0 if still else 2.0)
        cold.append(still)
    assert cold == [schedule.explores(step) for step in range(80)]


def test_an_automatic_friction_is_tuned_for_the_temperature_of_sampling() -> None:
    def run(exploration: float) -> Any:
        schedule = Cyclical(0.1, num_steps=300, num_cycles=1, exploration=exploration)
        return sample(fe.SGHMC(standard, step_size=schedule), num_samples=5, warmup_steps=100)

    # All rounds of warm-up, up to step 100 of 300, lie within this exploration.
    found = run(0.6).attrs
    assert np.isfinite(found["tuned_excess_temperature"]).all()
    step_size = Cyclical(0.1, num_steps=300, num_cycles=1)(100)
    assert found["tuned_friction"] == pytest.approx([math.sqrt(2 * step_size)] * 20, rel=0.3)


def test_both_modes_are_visited_and_each_is_right() -> None:
    # |∇| ≤ 3.5 however far out, so a step of ε = 10 leaps 17 at most: across, and not to infinity.
    # The last tenth of a cycle samples, with ε from 0.25 (εa = 1.1 at a mode) down to zero.
    cycles, chains = 4, 200
    schedule = Cyclical(10.0, num_steps=cycles * 300, num_cycles=cycles, exploration=0.9)
    tree = sample(
        fe.SGLD(two_modes, step_size=schedule),
        num_samples=cycles * 30,
        num_chains=chains,
        compile="traced",
    )
    w = tree.posterior["w"].values.astype(np.float64).reshape(chains, cycles, 30)
    side = w[..., -1] > 0
    assert (side[:, 1:] != side[:, :-1]).mean() > 0.2  # a new cycle, another mode
    assert 0.3 < side.mean() < 0.7
    assert ((w > 0) == side[..., None]).mean() > 0.99  # but no crossing while it samples
    # Within a mode: the last draw of each cycle, independent of the others given its mode.
    uniform = student_t.cdf((np.abs(w[..., -1]) - 5) / 0.5, 10)
    assert kstest(uniform.ravel(), "uniform").pvalue > 1e-4
    # Sharp enough to see a law a little off.
    assert kstest(uniform.ravel() ** 1.3, "uniform").pvalue < 1e-4


def test_without_exploration_every_step_is_kept_and_no_mode_is_left() -> None:
    constant = sample(
        fe.SGLD(two_modes, step_size=0.1), num_samples=300, num_chains=20, compile="traced"
    )
    sides = constant.posterior["w"].values > 0
    assert (sides[:, 50:].all(1) | ~sides[:, 50:].any(1)).all()


def test_a_cycle_that_explores_all_the_time_is_refused() -> None:
    with pytest.raises(ValueError, match=r"exploration must lie in \[0, 1\), got 1\.0"):
        Cyclical(0.1, num_steps=100, exploration=1.0)
