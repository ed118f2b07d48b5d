"""The way from `fe.sample` to a sampler's equation: its calls, and what a step is given."""

from __future__ import annotations

import inspect
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import pytest
from torch import Tensor
from torch.utils import _pytree as pytree

import ppl_fe as fe
from ppl_fe.inference.dynamics import Dynamics, Settings, sgld
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.run_plan import RunLength, RunPlan, Target
from ppl_fe.inference.step.step_function import Inputs, Slots

PACKAGE = Path(fe.__file__).parent
MOST_CALLS = 5


class Traced:
    """SGLD that notes which calls of the package lead to its last step, `sample` first."""

    hyperparameters: ClassVar[dict[str, float]] = {}
    init = staticmethod(sgld.init)
    tune = staticmethod(sgld.tune)
    excess_temperature = staticmethod(sgld.excess_temperature)
    relaxation_steps = staticmethod(sgld.relaxation_steps)

    def __init__(self) -> None:
        self.calls: list[str] = []

    def step(self, state: Any, gradient: Tensor, noise: Tensor, settings: Settings) -> Any:
        frame: FrameType | None = inspect.currentframe()
        found = ["Traced.step"]
        while frame is not None and found[-1] != "sample":
            frame = frame.f_back
            if frame is not None and PACKAGE in Path(frame.f_code.co_filename).parents:
                found.append(frame.f_code.co_qualname)
        self.calls = found[::-1]
        return sgld.step(state, gradient, noise, settings)


def model() -> None:
    pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))


@pytest.mark.parametrize("warmup_steps", [0, 3])
def test_from_sample_to_a_step_in_five_calls(warmup_steps: int) -> None:
    traced = Traced()

    class Kernel(fe.Kernel):
        dynamics: ClassVar[Dynamics] = traced

    fe.sample(
        Kernel(model, step_size=0.1),
        num_samples=2,
        warmup_steps=warmup_steps,
        num_chains=2,
        compile="eager",
        progress_bar=False,
    )
    calls = traced.calls
    assert (calls[0], calls[-1]) == ("sample", "Traced.step")
    assert len(calls) - 1 <= MOST_CALLS, " -> ".join(calls)


def test_the_fields_of_a_step_s_inputs_have_slots() -> None:
    assert [field.name for field in fields(Slots)] == list(Inputs._fields)
    kernel = fe.BAOAB(model, step_size=0.1, friction=1.0, metric="dense")
    plan = RunPlan(RunLength(3), num_chains=2, compile="eager")
    chains, _ = kernel.prepare(Target(Density(model)), plan)
    slots, leaves = chains._slots, chains._leaves
    for before, after in pairwise(getattr(slots, name) for name in Inputs._fields):
        assert before.stop == after.start
    assert (slots.state.start, slots.spare.stop) == (0, len(leaves))
    for slot, value in ((slots.settings, chains.settings), (slots.fixed, chains._fixed)):
        given = pytree.tree_leaves(value)
        assert all(a is b for a, b in zip(leaves[slot], given, strict=True))
    assert len(leaves[slots.state]) == len(leaves[slots.spare]) == len(chains.state)
