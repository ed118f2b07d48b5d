"""The first rows of the data through a network, before anything is run: what fails is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

FAILURES = (RuntimeError, TypeError, ValueError, IndexError)  # of a forward pass, whatever it meets


def try_inputs(
    call: Callable[[Any], Any], inputs: Any, dtype: torch.dtype, what: str = "data"
) -> Any:
    """Compute a network's output on some rows; where it fails, raise one error that says why.

    Args:
        call: inputs -> output.
        inputs: (B, ...), or name -> (B, ...) for a network called by keyword.
        dtype: of the network's weights.
        what: the argument that the inputs came by, "data" by default.

    Raises:
        ValueError: the network fails on them. Where it would run on another dtype, the error names
            the tensors that are to have it; else their shapes.

    Example:
        >>> line = torch.nn.Linear(2, 1)
        >>> try_inputs(line, torch.zeros(3, 2), torch.float32).shape
        torch.Size([3, 1])
    """
    try:
        return call(inputs)
    except FAILURES as error:
        own = f"{type(error).__name__}: {error}"
        for other, wanted in _in_other_dtypes(inputs, dtype):
            if _runs(call, other):
                given = _named(inputs)
                changed = [k for k, tensor in _named(other).items() if tensor is not given[k]]
                kinds = dict.fromkeys(str(given[name].dtype) for name in changed)
                raise ValueError(
                    f"{what}: {' and '.join(kinds)} in {', '.join(changed)}, where the network "
                    f"takes {wanted}; give tensor.to({wanted}), or "
                    f"array.astype({str(wanted).removeprefix('torch.')!r}) ({own})"
                ) from error
        shapes = ", ".join(f"{k} of shape {tuple(t.shape)}" for k, t in _named(inputs).items())
        raise ValueError(f"{what}: the network fails on {shapes}: {own}") from error


def _named(inputs: Any) -> dict[str, Tensor]:
    return dict(inputs) if isinstance(inputs, Mapping) else {"inputs": inputs}


def _in_other_dtypes(inputs: Any, dtype: torch.dtype) -> Iterator[tuple[Any, torch.dtype]]:
    """Cast floats, then all inputs, to the network's dtype; then whole numbers to int64."""
    for wanted, applies in (
        (dtype, torch.is_floating_point),
        (dtype, lambda tensor: True),
        (torch.int64, lambda tensor: bool((tensor == tensor.long()).all())),
    ):
        cast = {
            name: tensor.to(wanted) if applies(tensor) else tensor
            for name, tensor in _named(inputs).items()
        }
        yield cast if isinstance(inputs, Mapping) else cast["inputs"], wanted


def _runs(call: Callable[[Any], Any], inputs: Any) -> bool:
    try:
        call(inputs)
    except FAILURES:
        return False
    return True
