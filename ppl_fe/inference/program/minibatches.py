"""All the data through plates that subsample: index sets that cover them, arrays put together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_fe.inference.program.trace import Subsample

IndexSets = Mapping[str, Tensor]  # subsampled plate -> (B,)
VALUES_AT_ONCE = 2**22  # that a program, batched over draws, gives: over as many as that takes


def index_sets(
    subsamples: Sequence[Subsample], device: torch.device | str
) -> list[dict[str, Tensor]]:
    """Give runs of B indices of each subsampled plate that cover it, the last reaching its end.

    Example:
        >>> sets = index_sets([Subsample("data", 5, 2)], torch.device("cpu"))
        >>> [own["data"].tolist() for own in sets]
        [[0, 1], [2, 3], [3, 4]]
    """
    runs = []
    for _, size, batch in subsamples:
        begins = sorted({*range(0, size - batch, batch), size - batch})
        runs.append([torch.arange(k, k + batch, device=device) for k in begins])
    names = [plate.name for plate in subsamples]
    return [dict(zip(names, each, strict=True)) for each in itertools.product(*runs)]


def in_pieces(
    num_draws: int, values_each: int, evaluate: Callable[[slice], Mapping[str, NDArray[Any]]]
) -> dict[str, NDArray[Any]]:
    """Evaluate draws in pieces that fit into memory, and put these together, (S, ...).

    Args:
        num_draws: S.
        values_each: numbers that one draw gives.
        evaluate: gives name -> array (S', ...) of these draws.

    Example:
        >>> in_pieces(3, VALUES_AT_ONCE // 2, lambda rows: {"y": np.arange(9)[rows]})
        {'y': array([0, 1, 2])}
    """
    at_once = max(1, VALUES_AT_ONCE // max(1, values_each))
    pieces = [
        evaluate(slice(begin, min(begin + at_once, num_draws)))
        for begin in range(0, num_draws, at_once)
    ]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def put_together(
    parts: Sequence[tuple[IndexSets, Mapping[str, NDArray[Any]]]],
    axes: Mapping[str, Mapping[str, int]],
    subsamples: Sequence[Subsample],
) -> dict[str, NDArray[Any]]:
    """Put arrays of minibatches together into arrays of all the data.

    Args:
        parts: index sets of runs of entries, and what was found on that minibatch.
        axes: name -> subsampled plate -> the axis along it, counted from the end.
        subsamples: the plates.

    Example:
        >>> plates = [Subsample("data", 3, 2)]
        >>> parts = [(own, {"y": own["data"].numpy()}) for own in index_sets(plates, "cpu")]
        >>> put_together(parts, {"y": {"data": -1}}, plates)
        {'y': array([0, 1, 2])}
    """
    sizes = {plate.name: plate.size for plate in subsamples}
    found: dict[str, NDArray[Any]] = {}
    for subsets, arrays in parts:
        for name, array in arrays.items():
            if name not in found:
                shape = list(array.shape)
                for plate, axis in axes[name].items():
                    shape[axis] = sizes[plate]
                found[name] = np.empty(shape, array.dtype)
            places = [slice(None)] * array.ndim
            for plate, axis in axes[name].items():
                begin = int(subsets[plate][0])
                places[axis] = slice(begin, begin + len(subsets[plate]))
            found[name][tuple(places)] = array
    return found
