"""The delta file: new values of some weights, bound to the weights they belong to by a hash."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from ppl_fe.files.safetensors_io import parsed, read_checked, sizes, text, write_checked

FORMAT = "ppl-fe delta 1"
# Positions are stored as steps from one to the next in 16 bits; the largest code means "that far
# on, and no entry yet". At a sparsity of half a per cent the file is a quarter smaller for it.
LONGEST_STEP = 32767
WHOLE = "whole."  # prefix of the names of tensors stored whole


class DeltaError(ValueError):
    """A delta that cannot be read, or that belongs to other weights.

    Example:
        >>> issubclass(DeltaError, ValueError)
        True
    """


@dataclass(frozen=True)
class Delta:
    """New values of some entries of a module.

    Args:
        base_hash: of the weights it belongs to, the `digest` of `hashes.base_tensors`.
        shapes: name -> shape of every tensor outside the head.
        partly: the names among them that `positions` runs through, one after the other.
        positions: (K,) int64, increasing, in the flattened tensors of `partly` laid end to end.
        values: (K,) the new values there.
        whole: name -> tensors that are replaced whole; the head's are among them.
        head: names of the freshly initialised head's tensors, which are not part of the base.
    """

    base_hash: str
    shapes: Mapping[str, tuple[int, ...]]
    partly: tuple[str, ...]
    positions: Tensor
    values: Tensor
    whole: Mapping[str, Tensor]
    head: tuple[str, ...] = ()

    def parts(self) -> list[tuple[str, Tensor, Tensor]]:
        """Split into name, positions in the flattened tensor and values, a part a tensor."""
        parts, start = [], 0
        for name in self.partly:
            end = start + prod(self.shapes[name])
            bounds = torch.searchsorted(self.positions, torch.tensor([start, end]))
            here = slice(int(bounds[0]), int(bounds[1]))
            parts.append((name, self.positions[here] - start, self.values[here]))
            start = end
        return parts


def write_delta(delta: Delta, path: str | os.PathLike[str]) -> None:
    """Write a delta as one safetensors file, aside and then renamed.

    About 6 bytes an entry in single precision, the head's tensors whole, and the names and shapes
    of the base.
    """
    tensors = {WHOLE + name: tensor for name, tensor in delta.whole.items()}
    tensors |= {"steps": _steps(delta.positions), "values": delta.values}
    about = {
        "base_hash": delta.base_hash,
        "shapes": delta.shapes,
        "partly": delta.partly,
        "head": delta.head,
    }
    write_checked(path, tensors, about, FORMAT)


def read_delta(path: str | os.PathLike[str]) -> Delta:
    """Read a delta file; no code in it can run.

    Raises:
        FileNotFoundError: there is no such file.
        DeltaError: damaged, truncated, of another format, or no delta.
    """
    tensors, said = read_checked(path, FORMAT, "delta", DeltaError)
    return parsed(path, "delta", DeltaError, lambda: _delta(tensors, said))


def _delta(tensors: Mapping[str, Tensor], said: Mapping[str, Any]) -> Delta:
    """Build a delta from a file's fields.

    Raises:
        ValueError: they do not fit together, or hold NaN or infinite values. A field that is
            missing or of another type raises what it happens to raise.
    """
    delta = Delta(
        base_hash=text(said["base_hash"]),
        shapes={text(name): sizes(shape) for name, shape in dict(said["shapes"]).items()},
        partly=tuple(text(name) for name in said["partly"]),
        positions=_positions(tensors["steps"]),
        values=tensors["values"],
        whole={k.removeprefix(WHOLE): v for k, v in tensors.items() if k.startswith(WHOLE)},
        head=tuple(text(name) for name in said["head"]),
    )
    held = sum(prod(delta.shapes[name]) for name in delta.partly)
    positions, base = delta.positions, set(delta.shapes)
    faults = {
        "positions and values do not fit together": (
            delta.values.shape != positions.shape
            or (len(positions) > 0 and int(positions[-1]) >= held)
        ),
        "a tensor is named twice": len(set(delta.partly)) < len(delta.partly)
        or bool(set(delta.partly) & set(delta.whole)),
        "the head is part of the base": bool(set(delta.head) & base),
        "a tensor is not of the base": not set(delta.whole) - set(delta.head) <= base,
        "the head's tensors are missing": not set(delta.head) <= set(delta.whole),
        "a tensor has another shape than the base's": any(
            tensor.shape != delta.shapes.get(name, tensor.shape)
            for name, tensor in delta.whole.items()
        ),
        "it holds NaN or infinite values": not all(
            bool(tensor.isfinite().all()) for tensor in [delta.values, *delta.whole.values()]
        ),
        "it holds other tensors": len(tensors) != 2 + len(delta.whole),
    }
    wrong = [fault for fault, holds in faults.items() if holds]
    if wrong:
        raise ValueError("; ".join(wrong))
    return delta


def _steps(positions: Tensor) -> Tensor:
    gaps = torch.diff(positions, prepend=positions.new_full((1,), -1)) - 1
    codes = torch.full((len(gaps) + int((gaps // LONGEST_STEP).sum()),), LONGEST_STEP)
    codes[torch.arange(len(gaps)) + (gaps // LONGEST_STEP).cumsum(0)] = gaps % LONGEST_STEP
    return codes.to(torch.int16)


def _positions(steps: Tensor) -> Tensor:
    if steps.dtype != torch.int16 or steps.dim() != 1 or bool((steps < 0).any()):
        raise ValueError("steps are not those of positions")
    codes = steps.long()
    entry = codes < LONGEST_STEP
    return (codes + entry).cumsum(0)[entry] - 1
