"""What every source of data is held to: rows of tensors, of equal length, all finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_fe.arguments import named_arguments

Inputs = Tensor | dict[str, Tensor]
TARGET_KEYS = ("labels", "targets")


def split(item: object, what: str) -> tuple[Any, Any]:
    """Split (inputs, targets), or a mapping at its key ``labels`` or ``targets``.

    Args:
        item: a data set, one of its items, or a batch.
        what: what error messages call it.

    Returns:
        The inputs (for a mapping a dictionary of the other keys), and the targets.

    Raises:
        TypeError: neither a pair nor a mapping.
        ValueError: not two entries; neither or both of the keys; nothing but targets.

    Example:
        >>> split({"input_ids": [1, 2], "labels": 0}, "an item")
        ({'input_ids': [1, 2]}, 0)
    """
    if isinstance(item, Mapping):
        keys = [key for key in TARGET_KEYS if key in item]
        if len(keys) != 1:
            raise ValueError(
                f"{what} must have exactly one of the keys 'labels' and 'targets', "
                f"got the keys {list(item)}"
            )
        inputs = {key: value for key, value in item.items() if key != keys[0]}
        if not inputs:
            raise ValueError(f"{what} has no inputs, only {keys[0]!r}")
        return inputs, item[keys[0]]
    if not isinstance(item, Sequence) or isinstance(item, str | bytes):
        raise TypeError(
            f"{what} must be (inputs, targets) or a mapping with 'labels', "
            f"got {type(item).__name__}"
        )
    if len(item) != 2:
        raise ValueError(f"{what} must be (inputs, targets), got {len(item)} entries")
    return item[0], item[1]


def as_tensor(value: object, what: str) -> Tensor:
    """Give a tensor or numpy array as a detached tensor of the same dtype.

    Raises:
        TypeError: anything else, or an array of a dtype that torch has not.

    Example:
        >>> as_tensor(np.ones(2), "inputs")
        tensor([1., 1.], dtype=torch.float64)
    """
    if isinstance(value, Tensor):
        return value.detach()
    if not isinstance(value, np.ndarray):
        pandas = type(value).__module__.partition(".")[0] == "pandas"
        advice = "; give its values: frame.to_numpy('float32')" if pandas else ""
        raise TypeError(
            f"{what} must be a tensor or numpy array, got {type(value).__name__}{advice}"
        )
    try:
        # A copy where torch could not share the memory safely.
        shared = value.flags.writeable and value.flags.c_contiguous
        return torch.from_numpy(value if shared else value.copy(order="C"))
    except TypeError as error:
        raise TypeError(f"{what} is an array of dtype {value.dtype}, torch has none") from error


def convert(inputs: object, targets: object, what: str) -> tuple[Inputs, Tensor]:
    """Give inputs, one or a mapping of them, and targets as tensors.

    Raises:
        TypeError: one of them is neither a tensor nor a numpy array.

    Example:
        >>> convert({"x": np.ones(1)}, np.zeros(1, dtype=np.int64), "the data")[1]
        tensor([0])
    """
    tensors: Inputs
    if isinstance(inputs, Mapping):
        tensors = {str(key): as_tensor(v, f"{what}: {key!r}") for key, v in inputs.items()}
    else:
        tensors = as_tensor(inputs, f"{what}: inputs")
    return tensors, as_tensor(targets, f"{what}: targets")


def check_rows(inputs: Inputs, targets: Tensor, what: str) -> int:
    """Check that tensors are rows of equal number and finite; give the number of rows.

    Raises:
        TypeError: something is no tensor.
        ValueError: empty, without a leading dimension of rows, lengths that disagree, NaN or
            infinite values; the message says which, how many and where first.

    Example:
        >>> check_rows(torch.zeros(3, 2), torch.zeros(3), "the data")
        3
    """
    named = dict(inputs) if isinstance(inputs, Mapping) else {"inputs": inputs}
    if "targets" in named:
        raise ValueError(f"{what}: an input must not be called 'targets'")
    named["targets"] = targets
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{what}: {name} must be a tensor, got {type(tensor).__name__}")
        if tensor.ndim == 0:
            raise ValueError(f"{what}: {name} is a scalar, its first dimension must be the rows")
    lengths = {name: len(tensor) for name, tensor in named.items()}
    if len(named) == 1:
        raise ValueError(f"{what}: there are no inputs")
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{what}: lengths disagree: {lengths}")
    if lengths["targets"] == 0:
        raise ValueError(f"{what}: empty, no rows")
    for name, tensor in named.items():
        bad = ~torch.isfinite(tensor)
        if bad.any():
            where = tuple(bad.nonzero()[0].tolist())
            raise ValueError(
                f"{what}: {name} has {int(bad.sum())} NaN or infinite values, the first "
                f"({tensor[where].item()}) at index {where}; remove or impute them"
            )
    return lengths["targets"]


@named_arguments
def check_labels(targets: Tensor, num_classes: int) -> None:
    """Check that targets are class labels 0, ..., num_classes - 1.

    Args:
        targets: integers of any shape.
        num_classes: the number of classes, which is the width of the network's output.

    Raises:
        TypeError: the targets are not integers.
        ValueError: a label outside the range; the message names the first.

    Example:
        >>> check_labels(torch.tensor([0, 2, 1]), num_classes=3)
        >>> check_labels(torch.tensor([0, 3]), num_classes=3)
        Traceback (most recent call last):
            ...
        ValueError: targets: the label at index 1 is 3, allowed are 0 to 2 (3 classes)
    """
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise TypeError(
            f"targets must be integer class labels, got {targets.dtype}; convert by .long()"
        )
    wrong = (targets < 0) | (targets >= num_classes)
    if wrong.any():
        where = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(
            f"targets: the label at index {where[0] if len(where) == 1 else where} is "
            f"{targets[where].item()}, allowed are 0 to {num_classes - 1} ({num_classes} classes)"
        )
