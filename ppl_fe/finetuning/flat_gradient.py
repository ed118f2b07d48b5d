"""A gradient as autograd leaves it, tensor by tensor, read as if it were one vector.

Copied into a vector it would exist twice, a copy of the parameters more at the peak. In blocks of a
cache's worth, most of which lie within one tensor, it need not be copied at all.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from torch import Tensor

BLOCK = 2**18  # entries: a cache's worth


class GradientParts:
    """∂L/∂w of the tensors that L depends on, with their slices of the vector of all weights.

    Args:
        parts: (slice, gradient) of each tensor, the gradient flattened; elsewhere it is zero.

    Example:
        >>> import torch
        >>> parts = GradientParts([(slice(3, 5), torch.tensor([4.0, 5.0]))])
        >>> parts.block(slice(2, 6), torch.empty(4))
        tensor([0., 4., 5., 0.])
    """

    def __init__(self, parts: Sequence[tuple[slice, Tensor]]) -> None:
        self._parts = sorted(parts, key=lambda part: part[0].start)
        self._starts = [own.start for own, _ in self._parts]

    def block(self, at: slice, memory: Tensor) -> Tensor:
        """Give the entries `at`, without a copy if they lie in one tensor.

        Args:
            at: the slice of the vector.
            memory: filled with the entries if they do not lie in one tensor; as long as `at`.

        Returns:
            A view of the tensor's gradient, or `memory`.
        """
        first = max(0, bisect_right(self._starts, at.start) - 1)
        after = bisect_right(self._starts, at.stop - 1)
        covering = self._parts[first:after]
        if len(covering) == 1:
            ((own, values),) = covering
            if own.start <= at.start and at.stop <= own.stop:
                return values[at.start - own.start : at.stop - own.start]
        memory.zero_()
        for own, values in covering:
            start, stop = max(own.start, at.start), min(own.stop, at.stop)
            if start < stop:
                part = values[start - own.start : stop - own.start]
                memory[start - at.start : stop - at.start] = part
        return memory

    def corrected(
        self, other: GradientParts, mean: Tensor, slices: Iterable[slice]
    ) -> GradientParts:
        """Give this gradient − `other` + `mean`, in the memory of this one where it has any.

        Args:
            other: the gradient subtracted, of the same batch elsewhere.
            mean: (D,), which is added.
            slices: of all tensors of the vector; a gradient that lacks one is zero there.
        """
        own = {at.start: values for at, values in self._parts}
        others = {at.start: values for at, values in other._parts}
        parts = []
        for at in slices:
            values = own.get(at.start)
            values = mean[at].clone() if values is None else values.add_(mean[at])
            if at.start in others:
                values.sub_(others[at.start])
            parts.append((at, values))
        return GradientParts(parts)

    def write_to(self, vector: Tensor) -> None:
        """Overwrite a vector (D,) with the gradient."""
        self.add_to(vector.zero_(), 1.0)

    def add_to(self, vector: Tensor, factor: float) -> None:
        """Add factor · gradient to a vector (D,)."""
        for own, values in self._parts:
            vector[own].add_(values, alpha=factor)

    def add_squares_to(self, vector: Tensor, factor: float = 1.0) -> None:
        """Add factor · gradient² to a vector (D,), entry by entry."""
        for own, values in self._parts:
            vector[own].addcmul_(values, values, value=factor)

    def dot(self, vector: Tensor) -> float:
        """Multiply with a vector (D,), which may be of less precision: Σ vector_i · gradient_i."""
        total = 0.0
        for own, values in self._parts:
            # Blockwise: casting the whole vector would need another (D,) buffer.
            for k in range(0, len(values), BLOCK):
                block, other = values[k : k + BLOCK], vector[own][k : k + BLOCK]
                total += float(other.to(block.dtype) @ block)
        return total
