"""A gradient as autograd leaves it, tensor by tensor, read as if it were one vector.

Copied into a vector it would be there twice, a copy of the parameters more at the peak; in blocks
of a cache's worth, most of which lie within one tensor, it need not be copied at all.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from torch import Tensor

BLOCK = 2**18  # entries: a cache's worth


class GradientParts:
    """∂L/∂w of the tensors that L depends on, by their places in the vector of all weights.

    Args:
        parts: (place, gradient) of each tensor, the gradient flattened; elsewhere it is zero.

    Example:
        >>> import torch
        >>> parts = GradientParts([(slice(3, 5), torch.tensor([4.0, 5.0]))])
        >>> parts.block(slice(2, 6), torch.empty(4))
        tensor([0., 4., 5., 0.])
    """

    def __init__(self, parts: Sequence[tuple[slice, Tensor]]) -> None:
        self._parts = sorted(parts, key=lambda part: part[0].start)
        self._starts = [place.start for place, _ in self._parts]

    def block(self, at: slice, memory: Tensor) -> Tensor:
        """The entries `at`: a view if they lie in one tensor, else `memory` filled with them."""
        first = max(0, bisect_right(self._starts, at.start) - 1)
        after = bisect_right(self._starts, at.stop - 1)
        covering = self._parts[first:after]
        if len(covering) == 1:
            ((place, values),) = covering
            if place.start <= at.start and at.stop <= place.stop:
                return values[at.start - place.start : at.stop - place.start]
        memory.zero_()
        for place, values in covering:
            start, stop = max(place.start, at.start), min(place.stop, at.stop)
            if start < stop:
                own = values[start - place.start : stop - place.start]
                memory[start - at.start : stop - at.start] = own
        return memory

    def write_to(self, vector: Tensor) -> None:
        """Make a vector (D,) of it."""
        self.add_to(vector.zero_(), 1.0)

    def add_to(self, vector: Tensor, factor: float) -> None:
        """vector += factor · gradient."""
        for place, values in self._parts:
            vector[place].add_(values, alpha=factor)

    def add_squares_to(self, vector: Tensor, factor: float = 1.0) -> None:
        """vector_i += factor · gradient_i²."""
        for place, values in self._parts:
            vector[place].addcmul_(values, values, value=factor)

    def dot(self, vector: Tensor) -> float:
        """vector · gradient; the vector may be of less precision."""
        total = 0.0
        for place, values in self._parts:
            # By blocks, as a vector of the other precision is one too many.
            for k in range(0, len(values), BLOCK):
                own, other = values[k : k + BLOCK], vector[place][k : k + BLOCK]
                total += float(other.to(own.dtype) @ own)
        return total
