"""The delta file: new values of some weights, bound to the weights they belong to by a hash."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ppl_fe.networks.safetensors_io import read_checked, write_checked

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
        base_hash: of the weights it belongs to, by `hashes.base_hash`.
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
    delta = Delta(
        base_hash=said["base_hash"],
        shapes={name: tuple(shape) for name, shape in said["shapes"].items()},
        partly=tuple(said["partly"]),
        positions=_positions(tensors["steps"]),
        values=tensors["values"],
        whole={k.removeprefix(WHOLE): v for k, v in tensors.items() if k.startswith(WHOLE)},
        head=tuple(said["head"]),
    )
    held = sum(prod(delta.shapes[name]) for name in delta.partly)
    positions = delta.positions
    if len(positions) != len(delta.values) or (len(positions) and int(positions[-1]) >= held):
        raise DeltaError(f"{path} is damaged: positions and values do not fit together")
    return delta


def _steps(positions: Tensor) -> Tensor:
    gaps = torch.diff(positions, prepend=positions.new_full((1,), -1)) - 1
    codes = torch.full((len(gaps) + int((gaps // LONGEST_STEP).sum()),), LONGEST_STEP)
    codes[torch.arange(len(gaps)) + (gaps // LONGEST_STEP).cumsum(0)] = gaps % LONGEST_STEP
    return codes.to(torch.int16)


def _positions(steps: Tensor) -> Tensor:
    codes = steps.long()
    entry = codes < LONGEST_STEP
    return (codes + entry).cumsum(0)[entry] - 1
