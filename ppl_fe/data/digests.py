"""What tells one data set from another: the SHA-256 of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_fe.data.loaders import LoaderData
from ppl_fe.data.sources import TensorData
from ppl_fe.files.digest import digest


def data_digests(name: str, source: TensorData | LoaderData) -> dict[str, str]:
    """Give the SHA-256 of data, tensor by tensor.

    Of a loader it is that of a batch from all over the data set, without what comes out differently
    each time it is read.

    Args:
        name: what messages call the data.
        source: the data.

    Example:
        >>> list(data_digests("data", TensorData(torch.zeros(3, 2), torch.zeros(3), 3)))
        ['data inputs', 'data targets']
    """
    if isinstance(source, LoaderData):
        once, again = (_named(name, *source.spread()) for _ in range(2))
        once = {key: value for key, value in once.items() if torch.equal(value, again[key])}
    else:
        once = _named(name, source.inputs, source.targets)
    return {key: digest({"": value}) for key, value in once.items()}


def _named(name: str, inputs: Any, targets: Tensor) -> dict[str, Tensor]:
    if isinstance(inputs, Mapping):
        named = {f"{name} {key!r}": tensor for key, tensor in inputs.items()}
    else:
        named = {f"{name} inputs": inputs}
    return {**named, f"{name} targets": targets}
