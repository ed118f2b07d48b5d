"""What is said of pulls that may be chance, over tasks whose answer is known.

    pytest -s -m slow tests/statistical/test_chance_among_pulls.py

prints, for each kind of task, in how many the note comes, and its share beside the true one: how
many of the strongest pulls are at coefficients that did not move.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import ppl_fe as fe
from ppl_fe.data.sources import TensorData
from ppl_fe.finetuning.bayestune.chance import chance_among
from ppl_fe.finetuning.bayestune.pulls import measure_pulls
from ppl_fe.finetuning.flat_weights import WorkingCopy
from ppl_fe.finetuning.objective import Objective

SPREAD = 0.1  # of the inputs


class Tasks(NamedTuple):
    """A kind of task: so many of `size` coefficients moved, their effects on an output."""

    moved: int
    size: int
    least: float
    most: float
    likelihood: str = "normal"
    rows: int = 400
    correlation: float = 0.0  # of the inputs within blocks of twenty

    def draw(self, seed: int) -> tuple[TensorData, torch.Tensor]:
        """Give the rows, in units in which the pretrained weights are zero, and which moved."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(self.rows, self.size, generator=generator)
        if self.correlation:
            shared = torch.randn(self.rows, self.size // 20, generator=generator)
            x *= (1 - self.correlation) ** 0.5
            x += self.correlation**0.5 * shared.repeat_interleave(20, 1)
        places = torch.randperm(self.size, generator=generator)[: self.moved]
        signs = 2 * torch.randint(2, (self.moved,), generator=generator) - 1
        effects = torch.zeros(self.size)
        effects[places] = signs * torch.linspace(self.least, self.most, self.moved)
        noise = torch.randn(self.rows, generator=generator)
        output = x @ effects
        moved = torch.zeros(self.size, dtype=torch.bool)
        moved[places] = True
        if self.likelihood == "normal":
            return TensorData(SPREAD * x, output + noise, self.rows), moved
        labels = torch.rand(self.rows, generator=generator) < output.sigmoid()
        return TensorData(SPREAD * x, labels.long(), self.rows), moved


class Found(NamedTuple):
    """Of each task of a kind: whether the note comes, its share, and the true one."""

    noted: np.ndarray
    share: np.ndarray
    true: np.ndarray


def found(tasks: Tasks, seeds: int) -> Found:
    outputs = 1 if tasks.likelihood == "normal" else 2
    linear = nn.Linear(tasks.size, outputs, bias=False)
    nn.init.zeros_(linear.weight)
    net = fe.FlatNetwork(linear)
    working = WorkingCopy(net, Objective(tasks.likelihood, net.device))
    lines = []
    for seed in range(seeds):
        data, moved = tasks.draw(seed)
        pulls = measure_pulls(working, data, tasks.rows, 1000, seed)
        # The two rows of a logistic regression are each other's negative.
        kept = torch.arange(net.num_parameters) < tasks.size
        sizes = pulls.outside(kept, None)
        chance = chance_among(sizes.pull, sizes.by_chance, tasks.moved)
        strongest = sizes.pull.topk(tasks.moved).indices
        true = 1 - moved[strongest].float().mean().item() if tasks.most else 1.0
        lines.append((chance.noted, chance.share, true))
    result = Found(*np.array(lines, dtype=float).T)
    excess = result.share - result.true
    inputs = f", inputs correlated {tasks.correlation:g}" if tasks.correlation else ""
    print(
        f"{tasks.moved:4} of {tasks.size:5,}, {tasks.rows:5,} rows, {tasks.likelihood:11}, effects "
        f"{tasks.least:g} to {tasks.most:g}{inputs}: note in {100 * result.noted.mean():.1f} % of "
        f"{seeds}; share {result.share.mean():.3f}, true {result.true.mean():.3f}, difference "
        f"{excess.mean():+.3f} ± {excess.std(ddof=1) / seeds**0.5:.3f}"
    )
    return result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tasks", "seeds"),
    [
        (Tasks(20, 500, 0, 0), 400),
        (Tasks(20, 500, 0, 0, "categorical"), 400),
        (Tasks(20, 5000, 0, 0), 100),
        (Tasks(200, 5000, 0, 0), 100),
        (Tasks(200, 5000, 0, 0, "categorical"), 100),
        (Tasks(200, 5000, 0.03, 0.03), 100),
    ],
)
def test_where_nothing_can_be_found_the_note_comes(tasks: Tasks, seeds: int) -> None:
    assert found(tasks, seeds).noted.mean() >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tasks", "seeds"),
    [
        (Tasks(20, 500, 0.2, 0.4), 400),
        (Tasks(20, 500, 0.4, 0.8, "categorical", rows=2000), 100),
        (Tasks(5, 500, 0.3, 0.3), 400),
        (Tasks(1, 500, 0.3, 0.3), 400),
        (Tasks(20, 500, 0.1, 0.4, rows=4000), 100),
        (Tasks(200, 5000, 0.2, 0.4, rows=4000), 40),
    ],
)
def test_where_most_can_be_found_it_does_not(tasks: Tasks, seeds: int) -> None:
    result = found(tasks, seeds)
    assert result.true.mean() < 0.25
    assert result.noted.mean() <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tasks", "seeds"),
    [
        (Tasks(20, 500, 0.1, 0.1), 40),
        (Tasks(20, 500, 0.15, 0.15), 40),
        (Tasks(20, 500, 0.2, 0.2), 40),
        (Tasks(20, 500, 0.3, 0.3, "categorical"), 40),
        (Tasks(200, 5000, 0.1, 0.1), 40),
        (Tasks(200, 5000, 0.2, 0.2), 40),
        (Tasks(200, 5000, 0.1, 0.1, rows=4000), 40),
    ],
)
def test_in_between_the_share_is_right_on_average(tasks: Tasks, seeds: int) -> None:
    result = found(tasks, seeds)
    excess = result.share - result.true
    # Moved coefficients that are missed count as unmoved: a few per cent too many.
    few = tasks.moved / tasks.size
    assert -3 * excess.std() / seeds**0.5 < excess.mean() < few + 3 * excess.std() / seeds**0.5


@pytest.mark.slow
def test_weights_that_are_pulled_together() -> None:
    together = found(Tasks(20, 500, 0, 0, correlation=0.5), 400)
    assert together.noted.mean() >= 0.85


@pytest.mark.slow
def test_a_network_with_nothing_to_learn() -> None:
    noted = []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        net = fe.FlatNetwork(nn.Sequential(nn.Linear(30, 15), nn.Tanh(), nn.Linear(15, 5)))
        x = 3 * torch.randn(200, 30, generator=generator)
        chances = net(net.anchor, x).detach().softmax(1)
        labels = torch.multinomial(chances, 1, generator=generator)[:, 0]
        working = WorkingCopy(net, Objective("categorical", net.device))
        pulls = measure_pulls(working, TensorData(x, labels, 200), 32, 1000, seed)
        sizes = pulls.outside(torch.ones(net.num_parameters, dtype=torch.bool), None)
        noted.append([chance_among(sizes.pull, sizes.by_chance, k).noted for k in (5, 20, 100)])
    rates = np.mean(noted, axis=0)
    shown = ", ".join(f"{100 * rate:.1f} %" for rate in rates)
    print(f"5, 20 and 100 of {net.num_parameters}, its own labels: note in {shown} of 200")
    assert rates.min() >= 0.9
