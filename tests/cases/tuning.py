"""A small classifier to fine-tune, its data, and a call that tunes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ppl_fe.finetuning.train.finetune_result import FinetuneResult
from ppl_fe.finetuning.train.training import finetune
from ppl_fe.networks.flat import FlatNetwork

N = 60
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(81))
LABELS = (X[:, 0] + X[:, 1] > 0).long()
HEAD = "2"


def module() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(82)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))


def network() -> FlatNetwork:
    return FlatNetwork(module())


def some_mask() -> Tensor:
    mask = torch.zeros(network().num_parameters, dtype=torch.bool)
    mask[[0, 3, 11, 22]] = True
    return mask


def head_mask() -> Tensor:
    mask = torch.zeros(network().num_parameters, dtype=torch.bool)
    mask[network().slices["2.weight"].start :] = True
    return mask


def tune(net: FlatNetwork | None = None, data: Any = (X, LABELS), **options: Any) -> FinetuneResult:
    given: dict[str, Any] = {"num_steps": 20, "learning_rate": 0.05, "progress_bar": False}
    if options.get("method", "mask") == "mask":
        given["mask"] = some_mask()
    return finetune(net or network(), data, **{**given, **options})
