"""Checkpoints that go wrong, each in a way of its own: when read, as a network, or in chains."""

from __future__ import annotations

import math
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

EDGE = 5.0


class Steep(nn.Module):
    """f(w, x) = a·(x − mean) + b, and NaN beyond b = EDGE; the mean is a buffer."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(3, 1)
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        bias = self.line.bias
        outputs: Tensor = self.line(x - self.mean) + 0 * (EDGE - bias).sqrt()
        return outputs


def state(seed: int, mean: float = 0.0) -> dict[str, Tensor]:
    """Of small weights: nothing is wrong with it."""
    generator = torch.Generator().manual_seed(seed)
    weights = {"line.weight": (1, 3), "line.bias": (1,)}
    drawn = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in weights.items()}
    return {**drawn, "mean": torch.full((3,), mean)}


class Failing(Mapping[str, Tensor]):
    """A state dict that cannot be read: it is on a disk that is gone, or larger than memory."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __getitem__(self, name: str) -> Tensor:
        raise self.error

    def __iter__(self) -> Iterator[str]:
        raise self.error

    def __len__(self) -> int:
        return 3


def nested() -> dict[str, Any]:
    endless: dict[str, Any] = {}
    endless["state_dict"] = endless
    return endless


def index_nested(folder: Path) -> Path:
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ' + "[" * 100_000)
    return folder


def truncated(folder: Path) -> Path:
    folder.mkdir()
    save_file(state(0), folder / "model.safetensors")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-3])
    return folder


def text(path: Path) -> Path:
    path.write_text("version https://git-lfs.github.com/spec/v1")
    return path


def empty(path: Path) -> Path:
    path.touch()
    return path


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.getcwd, ()


def code(path: Path) -> Path:
    path.write_bytes(pickle.dumps(Payload(), protocol=2))
    return path


def forbidden(path: Path) -> Path:
    """A link to itself: the operating system refuses to open it."""
    path.symlink_to(path)
    return path


def changed(**tensors: Any) -> dict[str, Any]:
    """A state whose tensors of these names (line_bias for line.bias) are others."""
    return state(0) | {name.replace("line_", "line."): value for name, value in tensors.items()}


def without(name: str) -> dict[str, Tensor]:
    return {key: value for key, value in state(0).items() if key != name}


def as_rows(tensor: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the layout may change
        return tensor.to_sparse_csr()


WEIGHT = torch.ones(1, 3)
# Each takes a path of its own, at which there is nothing yet.
BAD: dict[str, Callable[[Path], Any]] = {
    "nothing there": lambda path: path,
    "empty file": empty,
    "text": text,
    "code": code,
    "link to itself": forbidden,
    "truncated": truncated,
    "index nested without end": index_nested,
    "dict nested without end": lambda path: nested(),
    "no tensors": lambda path: {"epoch": 3},
    "nothing": lambda path: {},
    "None": lambda path: None,
    "a number": lambda path: 3,
    "a module": lambda path: Steep(),
    "a list": lambda path: [WEIGHT],
    "a tensor": lambda path: WEIGHT,
    "out of memory": lambda path: Failing(RuntimeError("CUDA out of memory. Tried to allocate")),
    "MemoryError": lambda path: Failing(MemoryError()),
    "vanished": lambda path: Failing(FileNotFoundError(2, "No such file or directory")),
    "AttributeError": lambda path: Failing(AttributeError("no attribute")),
    "sparse": lambda path: changed(line_weight=WEIGHT.to_sparse()),
    "meta": lambda path: changed(line_weight=WEIGHT.to("meta")),
    "meta buffer": lambda path: changed(mean=torch.zeros(3, device="meta")),
    "compressed rows": lambda path: changed(line_weight=as_rows(WEIGHT)),
    "complex": lambda path: changed(line_bias=torch.ones(1, dtype=torch.complex64)),
    "whole numbers": lambda path: changed(line_bias=torch.ones(1, dtype=torch.long)),
    "another shape": lambda path: changed(line_weight=torch.ones(1, 4)),
    "a weight missing": lambda path: without("line.bias"),
    "a buffer missing": lambda path: without("mean"),
    "one too many": lambda path: changed(other=torch.ones(2)),
    "NaN": lambda path: changed(line_bias=torch.tensor([math.nan])),
    "infinite": lambda path: changed(line_bias=torch.tensor([-math.inf])),
    "infinite in float32": lambda path: changed(
        line_bias=torch.full((1,), -1e300, dtype=torch.float64)
    ),
    "NaN in a buffer": lambda path: changed(mean=torch.full((3,), math.nan)),
    "infinity in a buffer": lambda path: changed(mean=torch.full((3,), math.inf)),
    "weights of 1e30": lambda path: changed(line_weight=1e30 * WEIGHT),
    "weights of 1e30 in a lot of its own": lambda path: changed(
        line_weight=1e30 * WEIGHT, mean=torch.ones(3)
    ),
    "beyond the edge": lambda path: changed(line_bias=torch.full((1,), EDGE + 1)),
}
# Chains of these may fail, all or some of them, or may not.
DOUBTFUL: dict[str, Callable[[Path], Any]] = {
    "at the edge": lambda path: changed(line_bias=torch.full((1,), EDGE - 1e-6)),
    "at the edge in a lot of its own": lambda path: changed(
        line_bias=torch.full((1,), EDGE - 1e-6), mean=torch.full((3,), 2.0)
    ),
}
