"""Small networks whose scales are known, and a call that selects among their weights."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from ppl_fe.models import LaplaceGamma
from torch import Tensor, nn

from ppl_fe.finetuning.rules.shorthands import RULES, settings_of
from ppl_fe.finetuning.select import select_parameters
from ppl_fe.finetuning.selection import Selection
from ppl_fe.networks.flat import FlatNetwork

OBSERVED = torch.tensor([0.0, 0.1, 0.2, 0.4, 0.8])
SD = 0.1
SCALES = [0.09170, 0.09459, 0.10368, 0.13187, 0.17204]  # E[λ | y] at alpha 5, beta 50
PRIOR = LaplaceGamma(alpha=5.0, beta=50.0)
COPIES = 200


class Means(nn.Module):
    """f(w, x) = w: every weight is observed on its own."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(count))

    def forward(self, x: Tensor) -> Tensor:
        return self.w.expand(len(x), -1)


class Rows(nn.Module):
    """f(w, x) = w, whose rows have a scale each."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(rows, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.w.reshape(-1).expand(len(x), -1)


NUM_MOVED = 50


def planted(count: int, generator: torch.Generator) -> Tensor:
    """Observations (count,) of sd SD: the first 50 of weights that moved, the others of none."""
    data = SD * torch.randn(count, generator=generator)
    sides = torch.tensor([1.0, -1.0]).repeat(NUM_MOVED // 2)
    data[:NUM_MOVED] = torch.linspace(0.65, 3.0, NUM_MOVED) * sides
    return data


def observed_weights(output: Tensor, targets: Tensor) -> object:
    return pyro.sample("y", dist.Normal(output, SD).to_event(1), obs=targets)


def means(copies: int = COPIES) -> tuple[FlatNetwork, tuple[Tensor, Tensor]]:
    """Each of the five observations `copies` times over, weight by weight: (5 · copies,)."""
    return FlatNetwork(Means(5 * copies)), (torch.zeros(1, 1), OBSERVED.repeat(copies)[None])


LENGTH = {"num_samples": 10, "warmup_steps": 16, "thinning": 1}  # enough to come to scores


SETTINGS = {name for rule in RULES for name in settings_of(rule)}


def select(network: FlatNetwork, data: Any, rule: str = "collapsed", **options: Any) -> Selection:
    """Select a tenth by a rule of this name, which takes of the settings those that it has."""
    own = settings_of(rule)
    settings = {name: value for name, value in {**LENGTH, **options}.items() if name in own}
    call = {name: value for name, value in options.items() if name not in SETTINGS}
    given: dict[str, Any] = {"sparsity": 0.1, "progress_bar": False, **call}
    return select_parameters(network, data, rule=RULES[rule](**settings), **given)
