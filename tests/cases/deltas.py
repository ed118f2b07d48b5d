"""A pretrained module, fine-tuned copies of it, and their deltas."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ppl_fe.files import safetensors_io as checked_files
from ppl_fe.files.digest import digest
from ppl_fe.networks.delta_format import Delta
from ppl_fe.networks.deltas import save_delta
from ppl_fe.networks.hashes import base_tensors

HEAD = ("3.weight", "3.bias")
X = torch.randn(5, 4, generator=torch.Generator().manual_seed(71))


@dataclass
class Tuned:
    delta: Delta


def base(num_classes: int = 2) -> nn.Sequential:
    torch.manual_seed(72)
    net = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.Linear(6, num_classes)
    ).eval()
    net.get_buffer("1.running_mean").normal_()
    return net


def tuned(seed: int, module: nn.Module | None = None) -> tuple[nn.Module, Delta]:
    """A fine-tuned copy of the base, and its delta: two tensors in part, one whole, the head."""
    net = base() if module is None else copy.deepcopy(module)
    hashed = digest(base_tensors(net, HEAD))
    shapes = {name: tuple(t.shape) for name, t in base_tensors(net, HEAD).items()}
    generator = torch.Generator().manual_seed(seed)
    named = dict(net.named_parameters())
    partly, whole = ("0.weight", "2.weight"), ("1.bias", *HEAD)
    positions, start = [], 0
    with torch.no_grad():
        for name in partly:
            size = named[name].numel()
            at = torch.randperm(size, generator=generator)[:7].sort().values
            named[name].put_(at, torch.randn(7, generator=generator).to(named[name].dtype))
            positions.append(at + start)
            start += size
        for name in whole:
            named[name].normal_(generator=generator)
    everywhere = torch.cat([named[name].detach().reshape(-1) for name in partly])
    at = torch.cat(positions)
    return net, Delta(
        hashed, shapes, partly, at, everywhere[at], {n: named[n].detach() for n in whole}, HEAD
    )


def contents(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(module: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(before[n], t) for n, t in module.state_dict().items())


def saved(folder: Path, seed: int = 1) -> Path:
    path = folder / f"{seed}.safetensors"
    save_delta(Tuned(tuned(seed)[1]), path)
    return path


def nudge(module: nn.Module, name: str) -> None:
    """Move the first entry of a matrix by one unit in the last place."""
    with torch.no_grad():
        weight = module.get_parameter(name)
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on files of safetensors end half-way, with an error."""

    def half_way(tensors: object, file: Path, metadata: object) -> None:
        file.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(checked_files, "_write", half_way)
