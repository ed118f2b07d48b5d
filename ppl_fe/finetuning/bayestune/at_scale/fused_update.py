"""Equation (2) of `bayestune` over the vector of all offsets, block by block, and the weights.

    v = Δ/√η + √η N̂ ∂(−L)/∂w + σ ξ₁     and where the table holds u for (v, ξ₂): the first function
    Δ' = √η u,    w' = anchor + Δ'       u read there: the second function

A block and what lies between the two functions fit in a cache, so that every vector goes through
memory once. They are compiled apart. As one function they are a chain of instructions, from a
random word to a weight, that is longer than a processor looks ahead: it waits where it could begin
the next weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ppl_fe.finetuning.bayestune import proximal_step as proximal
from ppl_fe.finetuning.bayestune.at_scale.counter_rng import KEYS, draw_keys, normals
from ppl_fe.finetuning.bayestune.offsets import Offsets
from ppl_fe.finetuning.bayestune.scale_posterior import ScalePosterior, drawn
from ppl_fe.finetuning.flat_gradient import GradientParts
from ppl_fe.inference.step.compile import TensorFunction

NOISE_DTYPE = torch.float16  # right to 0.025 % of a value between 0.4 and 1
Build = Callable[[TensorFunction, list[Tensor]], TensorFunction]
ScaleDraw = tuple[slice, Sequence[Tensor]]


class FusedUpdate:
    """Take steps Δ -> Δ' and w -> w' in place, and give the scales λ of the present offsets.

    Args:
        scales: the prior.
        data_size: N̂, what the mean log-likelihood counts for.
        offsets: Δ and w, which are written.
        build: compiles a function, given tensors like its inputs.
        read: makes the function (offsets, noise) -> scales: `drawn`, the default, or `expected`.

    Example:
        >>> weights = torch.zeros(64)
        >>> offsets = Offsets(torch.ones(50), weights, width=32)
        >>> scales = ScalePosterior(alpha=0.01, beta=100.0)
        >>> update = FusedUpdate(scales, 1.0, offsets, lambda function, _: function)
        >>> variance = update.prepare(step_size=1e-4)
        >>> noise_sd = torch.full((64,), variance**0.5, dtype=NOISE_DTYPE)
        >>> update(GradientParts([]), noise_sd, torch.Generator())
        >>> bool(offsets.values.any()), torch.equal(weights[:50], 1 + offsets.values[:50])
        (True, True)
    """

    def __init__(
        self,
        scales: ScalePosterior,
        data_size: float,
        offsets: Offsets,
        build: Build,
        read: Callable[[ScalePosterior], TensorFunction] = drawn,
    ) -> None:
        self.scales, self.data_size, self._offsets, self._build = scales, data_size, offsets, build
        values, first = offsets.values, offsets.blocks[0]
        width, end = first.stop, offsets.anchor[offsets.blocks[-1]]
        self._anchor_end = offsets.weights.new_zeros(width)  # the last block's, padded
        self._anchor_end[: len(end)] = end
        self._gradient = offsets.weights.new_zeros(width)  # for blocks that no tensor covers alone
        self._index = [values.new_zeros(width, dtype=kind) for kind in (None, torch.int32, None)]
        self._keys = values.new_zeros(len(offsets.blocks), KEYS, dtype=torch.int32)
        self._tables: list[Tensor] = []  # of the present ε
        self._functions: tuple[TensorFunction, TensorFunction] | None = None
        self._read_scales = build(read(scales), [values[first], values.new_zeros(width)])

    @property
    def num_scales(self) -> int:
        """Count the scales, those of the padding included."""
        return len(self._offsets.values)

    def per_weight(self, values: Tensor) -> Tensor:
        """Give each weight (D,) what belongs to its scale."""
        return values[: len(self._offsets.anchor)]

    def scale_of(self, weights: Tensor) -> Tensor:
        """Give the scales of some weights, all by number: each weight has its own."""
        return weights

    def prepare(self, step_size: float) -> float:
        """Set ε.

        Returns:
            Var(v | Δ) = 1 − h²/12, the variance of the view's noise before the curvature
            correction.
        """
        settings = proximal.prepare(self.scales, step_size)
        tables = [self._offsets.values.new_tensor(step_size), settings.quantiles]
        # Another ε is another input of the same graphs, which take long to compile.
        if self._functions is None or tables[1].shape != self._tables[1].shape:
            self._functions = self._compile(settings, tables)
        self._tables = tables
        return float(settings.noise_sd.square())

    def start(self, generator: torch.Generator) -> None:
        """Do nothing: scales are no part of the state."""

    def __call__(
        self, gradient: GradientParts, noise_sd: Tensor, generator: torch.Generator
    ) -> None:
        """Take one step.

        Args:
            gradient: ∂L/∂w of a minibatch's mean loss.
            noise_sd: (D + padding,) sd of the view's noise, in `NOISE_DTYPE`.
            generator: of the keys of the step's random numbers.
        """
        assert self._functions is not None
        look_up, move = self._functions
        offsets, index, tables = self._offsets, self._index, self._tables
        for at, key in zip(offsets.blocks, draw_keys(self._keys, generator), strict=True):
            values, part = offsets.values[at], gradient.block(at, self._gradient)
            look_up(values, part, key, noise_sd[at], tables[0], *index)
            anchor = offsets.anchor[at] if at.stop <= len(offsets.anchor) else self._anchor_end
            move(*index, anchor, *tables, values, offsets.weights[at])

    def read_scales(self, generator: torch.Generator) -> Iterator[ScaleDraw]:
        """Give the scales of the present offsets, block by block, as `read` makes them."""
        noise = torch.empty_like(self._offsets.values[self._offsets.blocks[0]])
        for at in self._offsets.blocks:
            noise.normal_(generator=generator)
            yield at, self._read_scales(self._offsets.values[at], noise)

    def state(self) -> dict[str, Tensor]:
        """Give what a chain carries beside its offsets: nothing."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Do nothing."""

    def _compile(
        self, settings: proximal.Settings, tables: list[Tensor]
    ) -> tuple[TensorFunction, TensorFunction]:
        factor = -self.data_size

        def look_up(
            offset: Tensor,
            gradient: Tensor,
            key: Tensor,
            noise_sd: Tensor,
            step_size: Tensor,
            *index: Tensor,
        ) -> list[Tensor]:
            unit = (0.5 * step_size) ** 0.5
            first, second = (half.to(offset.dtype) for half in normals(key, len(offset)))
            ahead = factor * gradient.to(offset.dtype)
            sd = noise_sd.to(offset.dtype)
            view = proximal.noisy_view(offset, ahead, first, unit, sd)
            for found, memory in zip(
                proximal.find_index(view, second, settings), index, strict=True
            ):
                memory.copy_(found)
            return []

        def move(
            cell: Tensor,
            corner: Tensor,
            along: Tensor,
            anchor: Tensor,
            step_size: Tensor,
            table: Tensor,
            offset: Tensor,
            weights: Tensor,
        ) -> list[Tensor]:
            index = proximal.TableIndex(cell, corner, along)
            unit = proximal.read_unit(index, settings._replace(quantiles=table))
            moved = (0.5 * step_size) ** 0.5 * unit
            offset.copy_(moved)
            weights.copy_(anchor + moved)
            return []

        # Clones: what is built is also run, and it writes in place.
        offset, index = self._offsets.values[self._offsets.blocks[0]].clone(), self._index
        noise_sd, anchor = offset.to(NOISE_DTYPE), self._anchor_end
        like = [offset, self._gradient, self._keys[0], noise_sd, tables[0], *index]
        first = self._build(look_up, like)
        weights = torch.empty_like(anchor)
        return first, self._build(move, [*index, anchor, *tables, offset, weights])
