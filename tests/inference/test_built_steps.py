"""Runs of one program build their step once, and each draws what it would have drawn alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import ppl_fe as fe
from ppl_fe.data.sources import as_data
from ppl_fe.free_energy.chain_options import ChainOptions
from ppl_fe.free_energy.local_chains import sample_local_posteriors
from ppl_fe.free_energy.lot_work import Materials
from ppl_fe.free_energy.lots import Lot
from ppl_fe.free_energy.places import Errand, Here
from ppl_fe.inference.run_plan import RunLength
from ppl_fe.inference.step import builder
from ppl_fe.inference.step.builder import BuiltSteps
from ppl_fe.inference.step.compile import build

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
OPTIONS = ChainOptions(
    localization=10.0,
    kernel=fe.BAOAB,
    batch_size=None,
    num_chains=2,
    length=RunLength(5, warmup_steps=10),
    progress_bar=False,
)


class Shifted(nn.Module):
    """A linear layer of inputs that a buffer shifts."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(shift))
        self.line = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.line(x + self.get_buffer("shift"))
        return output


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The calls expected of every function that is built."""
    expected: list[int] = []

    def counting(function: Any, example: Any, mode: Any, num_calls: int, **more: Any) -> Any:
        expected.append(num_calls)
        return build(function, example, mode, num_calls, **more)

    monkeypatch.setattr(builder, "build", counting)
    return expected


def losses(
    seed: int, steps: BuiltSteps | None, shift: float = 0.0, **changed: Any
) -> np.ndarray[Any, Any]:
    """The losses about a checkpoint."""
    torch.manual_seed(seed)
    network = fe.FlatNetwork(Shifted(shift))
    options = replace(OPTIONS, **changed)
    chains = sample_local_posteriors(network, network.anchor[None], (X, Y), options, steps=steps)
    found: np.ndarray[Any, Any] = chains.draws.sample_stats.loss.values
    return found


def test_another_checkpoint_takes_the_step_and_draws_as_it_would_alone(built: list[int]) -> None:
    steps = BuiltSteps()
    first = losses(1, steps)
    count = len(built)
    assert count == 2  # the step, and the gradient by which the warm-up measures
    second = losses(2, steps)
    assert len(built) == count
    assert (second == losses(2, None)).all()
    assert not (first == second).any()


@pytest.mark.parametrize(
    "changed",
    [
        {"localization": 20.0},
        {"inverse_temperature": 1.0},
        {"likelihood": fe.models.categorical},
        {"kernel": fe.SGLD},
        {"num_chains": 3},
        {"shift": 0.5},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_what_no_input_holds_is_built_anew(built: list[int], changed: dict[str, Any]) -> None:
    steps = BuiltSteps()
    losses(1, steps)
    count = len(built)
    shared = losses(1, steps, **changed)
    assert len(built) == 2 * count
    assert (shared == losses(1, None, **changed)).all()


@dataclass
class Softmax:
    """A likelihood without a hash."""

    scale: float = 1.0

    def __call__(self, output: Tensor, y: Tensor) -> None:
        pyro.sample("y", dist.Categorical(logits=self.scale * output), obs=y)


def test_a_likelihood_need_not_have_a_hash(built: list[int]) -> None:
    steps, softmax = BuiltSteps(), Softmax()
    first = losses(1, steps, likelihood=softmax)
    assert (first == losses(1, steps, likelihood=softmax)).all()
    assert len(built) == 2
    losses(1, steps, likelihood=Softmax())
    assert len(built) == 4


def test_compiling_is_weighed_against_the_steps_of_all_lots(built: list[int]) -> None:
    states = {}
    for seed in range(30):
        torch.manual_seed(seed)
        states[f"{seed}"] = nn.Linear(3, 2).state_dict()
    fe.choose_checkpoint(
        states, nn.Linear(3, 2), (X, Y), criteria=["free_energy"], localization=10.0,
        num_rungs=4, num_samples=8, warmup_steps=5, progress_bar=False,
    )  # fmt: skip
    lots, each = 5, 13  # of six candidates, 4 x 2 chains each, whose steps are 13
    assert built[2] == lots * each
    assert len(built) == 4  # beside the pilot's two


def test_lots_leave_other_runs_the_number_that_they_have() -> None:
    network = fe.FlatNetwork(nn.Linear(3, 2))
    names = ("a", "b")
    given = Materials(network, dict.fromkeys(names, network), as_data((X, Y)), BuiltSteps())
    errands = [Errand(Lot(0, [name], lambda: OPTIONS)) for name in names]
    found = Here(given).run(lambda own, _: own.steps.num_runs, errands)
    assert [value for _, value in found] == [2, 2]
    assert given.steps.num_runs == 1


def test_a_short_warm_up_spends_little_more_on_curvature_than_on_steps() -> None:
    network = fe.FlatNetwork(nn.Linear(3, 2))
    options = replace(OPTIONS, length=RunLength(20, warmup_steps=100))
    chains = sample_local_posteriors(network, network.anchor[None], (X, Y), options)
    searches, rounds = 2 * 41, 9 * 8  # forty gradients at either end of the warm-up
    assert 120 < chains.draws.attrs["num_gradients"] <= 120 + searches + rounds
