"""Checkpoints of a linear network to rank, and one whose chains fail."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

import ppl_fe as fe

N = 80
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(121))
LABELS = torch.arange(N) % 2
SHORT: dict[str, Any] = {
    "num_samples": 30,
    "thinning": 1,
    "warmup_steps": 30,
    "compile": "traced",
    "progress_bar": False,
}
# What a run needs to come to numbers, whatever they are.
QUICKEST: dict[str, Any] = {
    "num_chains": 2,
    "num_samples": 6,
    "warmup_steps": 2,
    "thinning": 1,
    "step_size": 1e-3,
    "compile": "eager",
    "progress_bar": False,
}


def linear_state(size: float) -> dict[str, Tensor]:
    return {"weight": torch.full((1, 3), size)}


def rank_lines(states: Any, **options: Any) -> pd.DataFrame:
    """Targets are 0, so that the weights "w=0.0" are at the minimum of the loss."""
    return fe.rank_checkpoints(
        states,
        nn.Linear(3, 1, bias=False),
        (X, torch.zeros(N)),
        **{**SHORT, "likelihood": "normal", "batch_size": None, **options},
    )


class Cliff(nn.Module):
    """f(w, x) = wx, and NaN beyond w = edge."""

    def __init__(self, edge: float) -> None:
        super().__init__()
        self.edge = edge
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.w + 0 * (self.edge - self.w).sqrt()
