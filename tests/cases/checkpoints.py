"""A module with parameters and buffers, a checkpoint of it, and one with tied weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def module() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def state() -> dict[str, Tensor]:
    """The state of the module after its parameters moved; its buffers are those of module()."""
    result = {name: value.clone() for name, value in module().state_dict().items()}
    for name, parameter in module().named_parameters():
        result[name] = parameter.detach() + 1.0
    return result


class Tied(nn.Module):
    """One tensor under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embedding(input_ids))
        return logits


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


def expected() -> Tensor:
    return torch.cat([state()[name].reshape(-1) for name, _ in module().named_parameters()])
