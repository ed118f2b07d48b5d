"""Data sets in any usual form as checked tensors, or as a loader of known length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from ppl_fe.arguments import named_arguments, require_batch_size
from ppl_fe.data.loaders import LoaderData
from ppl_fe.data.rows import Inputs, as_tensor, check_labels, check_rows, convert, split

__all__ = ["LoaderData", "TensorData", "as_data", "check_labels"]


@dataclass(frozen=True)
class TensorData:
    """All the data in memory, checked when made.

    Args:
        inputs: (N, ...) the inputs, or name -> (N, ...) for a network called by keyword.
        targets: (N, ...) the targets.
        num_data: N.

    Raises:
        TypeError: something is no tensor.
        ValueError: empty, lengths that disagree, NaN or infinite values.

    Example:
        >>> TensorData(torch.zeros(3, 2), torch.tensor([0, 1, 1]), 3).num_data
        3
    """

    inputs: Inputs
    targets: Tensor
    num_data: int

    def __post_init__(self) -> None:
        length = check_rows(self.inputs, self.targets, "the data")
        if self.num_data != length:
            raise ValueError(f"num_data is {self.num_data}, but the tensors hold {length} rows")


@named_arguments
def as_data(data: object, *, batch_size: int | None = None) -> TensorData | LoaderData:
    """Take data in any usual form; check it once, here.

    Args:
        data: one of

            - (inputs, targets), each a tensor or numpy array, the inputs also a mapping of them;
            - a mapping of tensors: ``labels`` (or ``targets``) are the targets, the rest inputs
              by keyword (Hugging Face);
            - a map-style ``Dataset``, its items pairs or mappings, or a list of mappings: stacked
              in memory;
            - a ``DataLoader``, which stays a loader;
            - ``TensorData`` or ``LoaderData``, returned as given.
        batch_size: B, if the caller has one; a loader brings its own.

    Returns:
        Dtypes stay as given; of a data set's items Python floats get torch's default dtype.

    Raises:
        TypeError: a form other than these, or entries that are no tensors.
        ValueError: empty, lengths that disagree, NaN or infinite values, not a pair, items of
            different shapes, a batch size that is none or against a loader's own.

    Example:
        >>> as_data((torch.zeros(3, 2), np.array([0, 1, 1]))).targets
        tensor([0, 1, 1])
        >>> as_data({"input_ids": torch.ones(2, 5), "labels": torch.zeros(2)}).inputs.keys()
        dict_keys(['input_ids'])
    """
    require_batch_size(batch_size)
    if isinstance(data, DataLoader):
        data = LoaderData(data)
    if isinstance(data, LoaderData):
        own = data.loader.batch_size
        if batch_size is not None and batch_size != own:
            raise ValueError(
                f"batch_size={batch_size} is given, but the loader brings its own, {own}; "
                "leave batch_size out"
            )
        return data
    if isinstance(data, TensorData):
        return data
    if isinstance(data, TensorDataset):
        data = data.tensors
    rows = isinstance(data, list) and all(isinstance(row, Mapping) for row in data)
    if isinstance(data, Mapping | tuple | list) and not rows:
        inputs, targets = convert(*split(data, "the data"), "the data")
    elif isinstance(data, IterableDataset) or not (
        hasattr(data, "__getitem__") and hasattr(data, "__len__")
    ):
        raise TypeError(
            f"data is a {type(data).__name__}; give (inputs, targets), a mapping of tensors with "
            "'labels', a map-style Dataset that knows its length, or a DataLoader over one"
        )
    else:
        inputs, targets = _stacked(data)
    return TensorData(inputs, targets, check_rows(inputs, targets, "the data"))


def _stacked(dataset: Any) -> tuple[Inputs, Tensor]:
    items = [split(dataset[i], f"item {i} of the data set") for i in range(len(dataset))]
    if not items:
        raise ValueError(f"the data set {type(dataset).__name__} is empty")
    first = items[0][0]
    targets = _stack([target for _, target in items], "targets")
    if not isinstance(first, Mapping):
        return _stack([inputs for inputs, _ in items], "inputs"), targets
    for i, (inputs, _) in enumerate(items):
        if not isinstance(inputs, Mapping) or inputs.keys() != first.keys():
            raise ValueError(f"item {i} of the data set has other keys than item 0: {list(first)}")
    return {str(k): _stack([inputs[k] for inputs, _ in items], repr(k)) for k in first}, targets


def _stack(values: list[Any], what: str) -> Tensor:
    rows: list[Tensor] = []
    for i, value in enumerate(values):
        try:
            array = isinstance(value, np.ndarray)
            row = as_tensor(value, what) if array else torch.as_tensor(value).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"item {i} of the data set: {what} is a {type(value).__name__} that is no tensor; "
                "give the data set a transform to tensors"
            ) from error
        if rows and row.shape != rows[0].shape:
            raise ValueError(
                f"item {i} of the data set: {what} has shape {tuple(row.shape)}, item 0 has "
                f"{tuple(rows[0].shape)}; pad the items, or give a DataLoader with a collate_fn"
            )
        rows.append(row)
    return torch.stack(rows)
