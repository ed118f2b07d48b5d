"""The vector of all offsets from the anchor, in blocks, and the network's weights with it."""

from __future__ import annotations

import torch
from torch import Tensor


class Offsets:
    """Offsets Δ = w − anchor in single precision or better, and the weights w that they make.

    Offsets are stored, not weights, so that the smallest ones keep their digits.

    Args:
        anchor: (D,), in the network's dtype.
        weights: (D + padding,), the weights that the network reads; written in place.
        width: entries in a block, which divides D + padding.

    Attributes:
        values: (D + padding,) Δ, zero at first.
        blocks: slices of `width` entries that make up the whole of `values`.

    Example:
        >>> offsets = Offsets(torch.ones(3), torch.zeros(4), width=2)
        >>> offsets.values[1] = 0.5
        >>> offsets.write()
        >>> offsets.weights.tolist(), offsets.blocks
        ([1.0, 1.5, 1.0, 0.0], [slice(0, 2, None), slice(2, 4, None)])
    """

    def __init__(self, anchor: Tensor, weights: Tensor, width: int) -> None:
        self.anchor, self.weights = anchor, weights
        wide = anchor.dtype in (torch.float32, torch.float64)
        self.values = torch.zeros_like(weights, dtype=anchor.dtype if wide else torch.float32)
        self.blocks = [slice(k, k + width) for k in range(0, len(weights), width)]

    def write(self, where: slice = slice(None)) -> None:
        """Set the weights to anchor + Δ, all of them by default."""
        at = slice(*where.indices(len(self.anchor)))
        torch.add(self.anchor[at], self.values[at], out=self.weights[at])
