"""A data frame's columns as tensors, for programs that read them by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ppl_fe.arguments import did_you_mean


class Columns:
    """Columns of a data frame, read as those of the frame: `frame["x"]`, `frame.x`, `len(frame)`.

    Args:
        columns: name -> (N,) tensor.
        others: names of columns that hold no numbers. Default none.

    Attributes:
        was_read: whether a column was asked for, by whichever name.

    Example:
        >>> frame = Columns({"x": torch.ones(3), "n": torch.arange(3)})
        >>> frame.n, len(frame), frame[["x", "n"]].shape
        (tensor([0, 1, 2]), 3, torch.Size([3, 2]))
    """

    def __init__(self, columns: Mapping[str, Tensor], others: Iterable[str] = ()) -> None:
        self.columns, self.others = dict(columns), tuple(others)
        self.was_read = False

    def __getitem__(self, name: str | list[str]) -> Tensor:
        self.was_read = True
        if isinstance(name, list):
            return torch.stack([self[one] for one in name], -1)
        if name in self.columns:
            return self.columns[name]
        if name in self.others:
            raise KeyError(
                f"column {name!r} holds no numbers; give codes in its place, by "
                f"frame[{name!r}] = frame[{name!r}].astype('category')"
            )
        near = did_you_mean(name, self.columns) or f"there are {', '.join(self.columns)}"
        raise KeyError(f"there is no column {name!r}; {near}")

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("_") or name not in self.__dict__.get("columns", {}):
            raise AttributeError(f"a data frame's columns have no attribute {name!r}")
        return self[name]

    def get(self, name: str, default: Tensor | None = None) -> Tensor | None:
        """Give a column, or the default where there is none, as pandas' frames do."""
        return self[name] if name in {*self.columns, *self.others} else default

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


def _flatten(held: Columns) -> tuple[list[Tensor], Any]:
    return [*held.columns.values()], (tuple(held.columns), held.others)


def _unflatten(tensors: Iterable[Tensor], about: Any) -> Columns:
    return Columns(dict(zip(about[0], tensors, strict=True)), about[1])


def _flatten_with_keys(held: Columns) -> tuple[list[tuple[Any, Tensor]], Any]:
    tensors, about = _flatten(held)
    keys: list[Any] = [pytree.MappingKey(name) for name in about[0]]
    return [*zip(keys, tensors, strict=True)], about


pytree.register_pytree_node(
    Columns,
    _flatten,
    _unflatten,
    flatten_with_keys_fn=_flatten_with_keys,
    serialized_type_name="ppl_fe.Columns",
)
