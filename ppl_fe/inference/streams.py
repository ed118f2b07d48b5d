"""What a step consumes besides its state: Gaussian noise, index sets, and data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ppl_fe.data import LoaderData
from ppl_fe.inference.density import Density, Indices

# Random numbers are drawn for about this many coordinates at once: enough that the cost of a call
# disappears, few enough to stay in the cache. It fixes the order of the stream, so it depends on
# the shape of the problem alone, never on how the step is run.
BLOCK_COORDINATES = 2**17
MAX_BLOCK_STEPS = 64


class RandomStream:
    """Standard normal noise (C, D) and index sets (C, B), step after step, from one seed.

    Noise and indices come from two generators, so that the noise of a run does not change with
    the number of its plates. Index sets are uniform with replacement and every chain draws its
    own: chains that share minibatches share their errors, and R-hat cannot see them.
    """

    def __init__(self, density: Density, num_chains: int, seed: int) -> None:
        self._density = density
        self._shape = (num_chains, density.num_parameters)
        coordinates = num_chains * density.num_parameters
        self.block_steps = max(1, min(MAX_BLOCK_STEPS, BLOCK_COORDINATES // coordinates))
        self._noise_generator = torch.Generator(density.device).manual_seed(seed)
        self._index_generator = torch.Generator(density.device).manual_seed(seed + 2**31)
        self._noise = torch.empty(
            (self.block_steps, *self._shape), dtype=density.dtype, device=density.device
        )
        self._indices: Indices = ()
        self._used = self.block_steps
        self._block_start = self._generator_states()

    def next(self) -> tuple[Tensor, Indices]:
        """One step's noise (C, D) and index sets (C, B); views that the next block overwrites."""
        if self._used == self.block_steps:
            self._block_start = self._generator_states()
            self._fill()
            self._used = 0
        at = self._used
        self._used += 1
        return self._noise[at], tuple(ix[at] for ix in self._indices)

    def indices(self) -> Indices:
        """Index sets (C, B) for one evaluation outside a chain's own steps."""
        return tuple(ix[0] for ix in self._draw_indices(1))

    def state(self) -> dict[str, Any]:
        """Where the stream stands, enough to go on from here exactly."""
        return {
            "block_start": self._block_start,
            "used": self._used,
            "generators": self._generator_states(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a `state()`."""
        self._block_start, self._used = state["block_start"], state["used"]
        self._set_generators(state["block_start"])
        self._fill()
        # `indices()` may have drawn since the block was filled.
        self._set_generators(state["generators"])

    def _fill(self) -> None:
        self._noise.normal_(generator=self._noise_generator)
        self._indices = self._draw_indices(self.block_steps)

    def _draw_indices(self, num_steps: int) -> Indices:
        return tuple(
            torch.randint(
                plate.size,
                (num_steps, self._shape[0], plate.subsample_size),
                generator=self._index_generator,
                device=self._density.device,
            )
            for plate in self._density.subsamples
        )

    def _set_generators(self, states: tuple[Tensor, Tensor]) -> None:
        self._noise_generator.set_state(states[0])
        self._index_generator.set_state(states[1])

    def _generator_states(self) -> tuple[Tensor, Tensor]:
        return self._noise_generator.get_state(), self._index_generator.get_state()


def stacked_batches(source: LoaderData, num_chains: int, seed: int) -> Iterator[tuple[Tensor, ...]]:
    """Batches of all chains side by side: every tensor (C, B, ...)."""
    for batches in zip(*source.replicas(num_chains, seed), strict=False):
        leaves = [pytree.tree_leaves(batch) for batch in batches]
        yield tuple(torch.stack(tensors) for tensors in zip(*leaves, strict=True))
