"""A module with parameters and buffers, a checkpoint of it, and one with tied weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

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


def as_shards(folder: Path, save: Callable[[dict[str, Tensor], Path], None], stem: str) -> Path:
    """Save the state in two files and an index, as the Hugging Face hub has it."""
    items = list(state().items())
    suffix = "safetensors" if stem == "model" else "bin"
    files = [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    halves = [dict(items[:4]), dict(items[4:])]
    weight_map: dict[str, str] = {}
    for file, half in zip(files, halves, strict=True):
        save(half, folder / file)
        weight_map |= dict.fromkeys(half, file)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
