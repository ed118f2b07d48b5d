"""A step of the proximal sampler over the vector of all offsets, block by block, and the weights.

    v = Δ/√η + √η N̂ ∂(−L)/∂w + σ ξ₁          looked up in the tables with ξ₂ (`proximal.place`)
    Δ' = √η u(v, ξ₂),    w' = anchor + Δ'     read there (`proximal.read`)

A block and what lies between the two lines fit in a cache, so that every vector goes through memory
once. The lines are compiled apart. As one function they are a chain of instructions, from a random
word to a weight, that is longer than a processor looks ahead: it waits where it could begin the
next weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ppl_fe.finetuning.bayestune import proximal_step as proximal
from ppl_fe.finetuning.bayestune.at_scale.counter_rng import KEYS, draw_keys, normals
from ppl_fe.finetuning.bayestune.scale_posterior import ScalePosterior
from ppl_fe.finetuning.flat_gradient import GradientParts
from ppl_fe.inference.step.compile import TensorFunction

NOISE_DTYPE = torch.float16  # right to 0.025 % of a value between 0.4 and 1
Build = Callable[[TensorFunction, list[Tensor]], TensorFunction]


class BlockUpdate:
    """Δ -> Δ' and w -> w', in place, for a vector of whole blocks.

    Args:
        scales: the prior.
        data_size: N̂, what the mean log-likelihood counts for.
        offset, weights: (D + padding,) that are moved and written.
        anchor: (D,).
        blocks: of one width, which make up the whole of `offset`.
        build: compiles a function, given tensors like its inputs.

    Example:
        >>> offset, weights = torch.zeros(64), torch.zeros(64)
        >>> scales = ScalePosterior(alpha=0.01, beta=100.0)
        >>> anchor, blocks = torch.ones(50), [slice(0, 32), slice(32, 64)]
        >>> update = BlockUpdate(scales, 1.0, offset, weights, anchor, blocks, lambda f, _: f)
        >>> variance = update.prepare(step_size=1e-4)
        >>> noise = torch.full((64,), variance**0.5, dtype=NOISE_DTYPE)
        >>> update(GradientParts([]), noise, torch.Generator())
        >>> bool(offset.any()), torch.equal(weights[:50], 1 + offset[:50])
        (True, True)
    """

    def __init__(
        self,
        scales: ScalePosterior,
        data_size: float,
        offset: Tensor,
        weights: Tensor,
        anchor: Tensor,
        blocks: Sequence[slice],
        build: Build,
    ) -> None:
        self.scales, self.data_size, self._build = scales, data_size, build
        self._blocks, self._offset, self._weights, self._anchor = blocks, offset, weights, anchor
        width, end = blocks[0].stop, anchor[blocks[-1]]
        self._anchor_end = weights.new_zeros(width)  # the last block's, padded
        self._anchor_end[: len(end)] = end
        self._memory = weights.new_zeros(width)
        self._place = [offset.new_zeros(width, dtype=kind) for kind in (None, torch.int32, None)]
        self._keys = offset.new_zeros(len(self._blocks), KEYS, dtype=torch.int32)
        self._tables: list[Tensor] = []  # of the present ε
        self._functions: tuple[TensorFunction, TensorFunction] | None = None

    def prepare(self, step_size: float) -> float:
        """Take steps of ε from now on; gives the variance of v where none is made up for."""
        settings = proximal.prepare(self.scales, step_size)
        tables = [self._offset.new_tensor(step_size), settings.quantiles]
        # Another ε is another input of the same graphs, which are dear to compile.
        if self._functions is None or tables[1].shape != self._tables[1].shape:
            self._functions = self._compile(settings, tables)
        self._tables = tables
        return float(settings.forward_noise.square())

    def __call__(
        self, gradient: GradientParts, forward_noise: Tensor, generator: torch.Generator
    ) -> None:
        """One step. forward_noise (D + padding,): σ, in `NOISE_DTYPE`."""
        assert self._functions is not None
        place, read = self._functions
        keys = draw_keys(self._keys, generator)
        for at, key in zip(self._blocks, keys, strict=True):
            offset, part = self._offset[at], gradient.block(at, self._memory)
            place(offset, part, key, forward_noise[at], self._tables[0], *self._place)
            anchor = self._anchor[at] if at.stop <= len(self._anchor) else self._anchor_end
            read(*self._place, anchor, *self._tables, offset, self._weights[at])

    def _compile(
        self, settings: proximal.Settings, tables: list[Tensor]
    ) -> tuple[TensorFunction, TensorFunction]:
        factor = -self.data_size

        def place(
            offset: Tensor,
            gradient: Tensor,
            key: Tensor,
            forward_noise: Tensor,
            step_size: Tensor,
            *to: Tensor,
        ) -> list[Tensor]:
            unit = (0.5 * step_size) ** 0.5
            one, other = (half.to(offset.dtype) for half in normals(key, len(offset)))
            ahead = factor * gradient.to(offset.dtype)
            sd = forward_noise.to(offset.dtype)
            mean = proximal.forward(offset, ahead, one, unit, sd)
            for found, memory in zip(proximal.place(mean, other, settings), to, strict=True):
                memory.copy_(found)
            return []

        def read(
            cell: Tensor,
            corner: Tensor,
            along: Tensor,
            anchor: Tensor,
            step_size: Tensor,
            table: Tensor,
            offset: Tensor,
            weights: Tensor,
        ) -> list[Tensor]:
            own = settings._replace(quantiles=table)
            unit = proximal.read(proximal.Place(cell, corner, along), own)
            moved = (0.5 * step_size) ** 0.5 * unit
            offset.copy_(moved)
            weights.copy_(anchor + moved)
            return []

        # Clones: what is built is also run, and it writes in place.
        offset = self._offset[self._blocks[0]].clone()
        noise, anchor, to = offset.to(NOISE_DTYPE), self._anchor_end, self._place
        first = self._build(place, [offset, self._memory, self._keys[0], noise, tables[0], *to])
        weights = torch.empty_like(anchor)
        return first, self._build(read, [*to, anchor, *tables, offset, weights])
