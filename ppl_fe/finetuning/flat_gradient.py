"""A gradient as autograd leaves it, tensor by tensor, read as if it were one vector.

Copied into a vector it would exist twice, a copy of the parameters more at the peak. In blocks of a
cache's worth, most of which lie within one tensor, it need not be copied at all. Of an embedding a
batch uses few rows: their gradients alone are kept (`Rows`), not a matrix of zeros.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 2**18  # entries: a cache's worth


@dataclass(frozen=True)
class Rows:
    """A matrix, flattened, some rows of which are given: an embedding's gradient.

    Attributes:
        index: (R,) the rows that are given, ascending.
        values: (R, width) their entries.
        base: (size,) what stands in the others; None for zeros.

    Example:
        >>> rows = Rows(torch.tensor([1]), torch.tensor([[5.0, 6.0]]), None)
        >>> rows.block(1, 5, torch.empty(4))
        tensor([0., 5., 6., 0.])
    """

    index: Tensor
    values: Tensor
    base: Tensor | None = None

    def block(self, start: int, stop: int, memory: Tensor) -> Tensor:
        """Give the entries from `start` up to `stop`, in `memory` of that length or a view."""
        width = self.values.shape[1]
        first, after = self._between(start, stop)
        if self.base is None:
            memory.zero_()
        elif first == after:
            return self.base[start:stop]
        else:
            memory.copy_(self.base[start:stop])
        if first < after:
            places = self.index[first:after, None] * width - start
            places = (places + torch.arange(width, device=places.device)).reshape(-1)
            inside = slice(  # a block may begin and end within a row
                int((places < 0).sum()), int((places < stop - start).sum())
            )
            memory[places[inside]] = self.values[first:after].reshape(-1)[inside].to(memory.dtype)
        return memory

    def are_zero(self, start: int, stop: int) -> bool:
        """Say whether all entries from `start` up to `stop` are known to be zero."""
        first, after = self._between(start, stop)
        return self.base is None and first == after

    def corrected(self, other: Rows | Tensor | None, mean: Tensor) -> Rows | Tensor:
        """Give this matrix − `other` + `mean` (size,), both without a base of their own."""
        if isinstance(other, Tensor):
            dense = self._dense(mean)
            return dense.add_(mean).sub_(other)
        taken = self.index
        if other is not None:
            taken = torch.unique(torch.cat([self.index, other.index]))
        values = mean.view(-1, self.values.shape[1])[taken]
        values[torch.searchsorted(taken, self.index)] += self.values
        if other is not None:
            values[torch.searchsorted(taken, other.index)] -= other.values
        return Rows(taken, values, mean)

    def _between(self, start: int, stop: int) -> tuple[int, int]:
        """Find which of the given rows have entries from `start` up to `stop`."""
        width = self.values.shape[1]
        ends = self.index.new_tensor([start // width, -(-stop // width)])
        first, after = torch.searchsorted(self.index, ends).tolist()
        return first, after

    def _dense(self, like: Tensor) -> Tensor:
        dense = torch.zeros_like(like)
        dense.view(-1, self.values.shape[1])[self.index] = self.values
        return dense


Part = Rows | Tensor  # flattened, either way


def as_part(gradient: Tensor) -> Part:
    """Read a tensor's gradient as autograd left it: by rows where it is a matrix stored sparsely.

    Example:
        >>> matrix = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
        >>> as_part(matrix.to_sparse(1)).index, as_part(matrix)
        (tensor([1]), tensor([0., 0., 1., 2.]))
    """
    if not gradient.is_sparse:
        return gradient.reshape(-1).contiguous()  # one number repeated, as of a sum, is spread out
    if (gradient.sparse_dim(), gradient.dense_dim()) != (1, 1):
        return gradient.to_dense().reshape(-1)
    summed = gradient.coalesce()
    return Rows(summed.indices()[0], summed.values())


def given(part: Part) -> Tensor:
    """Give the entries that autograd computed, in any shape: sum and finiteness are theirs."""
    return part.values if isinstance(part, Rows) else part


class GradientParts:
    """∂L/∂w of the tensors that L depends on, with their slices of the vector of all weights.

    Args:
        parts: (slice, gradient) of each tensor, the gradient flattened or by rows; elsewhere it is
            zero.

    Example:
        >>> parts = GradientParts([(slice(3, 5), torch.tensor([4.0, 5.0]))])
        >>> parts.block(slice(2, 6), torch.empty(4))
        tensor([0., 4., 5., 0.])
    """

    def __init__(self, parts: Sequence[tuple[slice, Part]]) -> None:
        self._parts = sorted(parts, key=lambda part: part[0].start)
        self._starts = [own.start for own, _ in self._parts]

    def block(self, at: slice, memory: Tensor) -> Tensor:
        """Give the entries `at`, without a copy if they lie in one tensor that is not by rows.

        Args:
            at: the slice of the vector.
            memory: filled with the entries if they have to be put together; as long as `at`.

        Returns:
            A view of the tensor's gradient, or `memory`.
        """
        first = max(0, bisect_right(self._starts, at.start) - 1)
        after = bisect_right(self._starts, at.stop - 1)
        covering = self._parts[first:after]
        if len(covering) == 1:
            ((own, values),) = covering
            if own.start <= at.start and at.stop <= own.stop:
                return _read(values, at.start - own.start, at.stop - own.start, memory)
        memory.zero_()
        for own, values in covering:
            start, stop = max(own.start, at.start), min(own.stop, at.stop)
            if start < stop:
                room = memory[start - at.start : stop - at.start]
                room.copy_(_read(values, start - own.start, stop - own.start, room))
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
        parts: list[tuple[slice, Part]] = []
        for at in slices:
            values, taken = own.get(at.start), others.get(at.start)
            if isinstance(values, Rows):
                parts.append((at, values.corrected(taken, mean[at])))
                continue
            values = mean[at].clone() if values is None else values.add_(mean[at])
            if taken is not None:
                GradientParts([(slice(0, len(values)), taken)]).add_to(values, -1.0)
            parts.append((at, values))
        return GradientParts(parts)

    def write_to(self, vector: Tensor) -> None:
        """Overwrite a vector (D,) with the gradient."""
        self.add_to(vector.zero_(), 1.0)

    def add_to(self, vector: Tensor, factor: float) -> None:
        """Add factor · gradient to a vector (D,)."""
        for at, values in self._pieces():
            vector[at].add_(values, alpha=factor)

    def add_squares_to(self, vector: Tensor, factor: float = 1.0) -> None:
        """Add factor · gradient² to a vector (D,), entry by entry."""
        for at, values in self._pieces():
            vector[at].addcmul_(values, values, value=factor)

    def dot(self, vector: Tensor) -> float:
        """Multiply with a vector (D,), which may be of less precision: Σ vector_i · gradient_i."""
        # Blockwise: casting the whole vector would need another (D,) buffer.
        return sum(float(vector[at].to(part.dtype) @ part) for at, part in self._pieces())

    def _pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Give the parts in pieces of a cache's worth, but for those that are zero."""
        for own, values in self._parts:
            size, by_rows = own.stop - own.start, isinstance(values, Rows)
            memory = given(values).new_empty(min(BLOCK, size) if by_rows else 0)
            for start in range(0, size, BLOCK):
                stop = min(start + BLOCK, size)
                if isinstance(values, Rows) and values.are_zero(start, stop):
                    continue
                piece = _read(values, start, stop, memory[: stop - start])
                yield slice(own.start + start, own.start + stop), piece


def _read(part: Part, start: int, stop: int, memory: Tensor) -> Tensor:
    """Give the entries of a part from `start` up to `stop`, in `memory` or as a view."""
    return part[start:stop] if isinstance(part, Tensor) else part.block(start, stop, memory)
