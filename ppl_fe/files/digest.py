"""The SHA-256 of tensors: equal where names, dtypes, shapes and bytes are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Give the SHA-256 of names, dtypes, shapes and bytes, in the order of the names.

    Args:
        tensors: of any shapes, dtypes and devices.

    Example:
        >>> digest({"a": torch.zeros(2)}) == digest({"a": torch.zeros(2)})
        True
        >>> digest({"a": torch.zeros(2)}) == digest({"a": torch.zeros(2, 1)})
        False
    """
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        content = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
        found.update(content.numpy().data)
    return found.hexdigest()
