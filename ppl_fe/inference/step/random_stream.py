"""Draw what a step consumes besides its state: Gaussian noise, index sets, and data."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Literal, Self

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ppl_fe.data import LoaderData
from ppl_fe.inference.program.density import Data, Density, Indices
from ppl_fe.ranks import own_part


class Batches:
    """Take the minibatches of a loader, one a chain; of several ranks each takes its own rows.

    Args:
        source: the loader; it is reshuffled for each chain.
        density: of the program, which is tried on the first minibatch of every shape.
        num_chains: C.
        seed: of the orders.

    Attributes:
        taken: how many were taken.
        current: the last of them, as `__next__` gave it.
    """

    def __init__(self, source: LoaderData, density: Density, num_chains: int, seed: int) -> None:
        self._by_chain = zip(*source.replicas(num_chains, seed), strict=False)
        self._density, self._tried = density, {shapes(density.tensors)}
        self.taken = 0
        self.current: Data = density.tensors

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Data:
        """Give the tensors of all chains side by side, (C, B, ...); where the chains' shapes
        differ, as with batches that are padded each to its own length, a list of one batch a chain.

        Raises:
            ValueError: a program that does not take a batch of this shape.
        """
        self.taken += 1
        drawn = [pytree.tree_leaves(own_part(batch)) for batch in next(self._by_chain)]
        # The program's keywords may hold tensors, too, which all minibatches share.
        each = [(*leaves, *self._density.tensors[len(leaves) :]) for leaves in drawn]
        found = {shapes(batch): batch for batch in each}
        for shape in found.keys() - self._tried:
            self._density.try_data(found[shape])
            if len(self._tried) == 1 and self._density.way.vectorized:
                self._warn(shape)
            self._tried.add(shape)
        alike = len(found) == 1
        self.current = tuple(map(torch.stack, zip(*each, strict=True))) if alike else each
        return self.current

    def _warn(self, shape: tuple[torch.Size, ...]) -> None:
        first, other = ([tuple(size) for size in sizes] for sizes in (*self._tried, shape))
        warnings.warn(
            f"the loader's batches differ in shape, {first} and {other}: steps on such batches "
            "run uncompiled and one chain after another. Pad all batches to one length, or pass "
            "chain_method='sequential' to silence this",
            RuntimeWarning,
            stacklevel=2,
        )

    def skip_to(self, taken: int) -> None:
        """Leave batches unused until so many were taken."""
        while self.taken < taken:
            next(self)


def shapes(data: Data) -> tuple[torch.Size, ...]:
    """List the shapes of all tensors.

    Example:
        >>> shapes((torch.zeros(3, 2), torch.zeros(3)))
        (torch.Size([3, 2]), torch.Size([3]))
    """
    return tuple(tensor.shape for tensor in pytree.tree_leaves(data))


Order = Literal["replacement", "epoch"]
ORDERS = ("replacement", "epoch")

# Random numbers are drawn for about this many coordinates at once: enough that the cost of a call
# disappears, few enough to stay in the cache. It fixes the order of the stream, so it depends on
# the shape of the problem alone, never on how the step is run.
BLOCK_COORDINATES = 2**17
MAX_BLOCK_STEPS = 64


class RandomStream:
    """Standard normal noise (C, D) and index sets (C, B), step after step, from one seed.

    Noise and indices come from two generators, so that the noise of a run does not change with
    the number of its plates. Every chain draws its own index sets: chains that share minibatches
    share their errors, and R-hat cannot see them.

    Args:
        density: has the shapes.
        num_chains: C.
        seed: equal seeds make equal streams.
        order: "replacement" (default), uniform and independent; or "epoch", every datum once an
            epoch, in another random order for each epoch and chain (a remainder smaller than a
            batch waits for another epoch).
        micro_batches: K, index sets are (C, K·B). Default 1.
        batches: of data that do not fit in memory, in place of index sets. Default none.
    """

    def __init__(
        self,
        density: Density,
        num_chains: int,
        seed: int,
        *,
        order: Order = "replacement",
        micro_batches: int = 1,
        batches: Batches | None = None,
    ) -> None:
        self._density, self.batches = density, batches
        self._order, self._seed, self._steps_filled = order, seed, 0
        self._sizes = [
            (plate.size, plate.subsample_size * micro_batches) for plate in density.subsamples
        ]
        if order == "epoch" and any(batch > size for size, batch in self._sizes):
            raise ValueError(
                f"micro_batches={micro_batches} takes more data a step than an epoch holds; "
                "use fewer, or smaller minibatches"
            )
        self._shape = (num_chains, density.num_parameters)
        coordinates = num_chains * density.num_parameters
        self.block_steps = max(1, min(MAX_BLOCK_STEPS, BLOCK_COORDINATES // coordinates))
        self._noise_generator = torch.Generator(density.device).manual_seed(seed)
        self._index_generator = torch.Generator(density.device).manual_seed(seed + 2**31)
        self._noise = torch.empty(
            (self.block_steps, *self._shape), dtype=density.dtype, device=density.device
        )
        # A view a step, made once: taking one costs 2 µs each time.
        self._noise_views = self._noise.unbind(0)
        self._index_views: list[Indices] = []
        self._used = self.block_steps
        self._block_start = self._generator_states()

    def next(self) -> tuple[Tensor, Indices]:
        """Return one step's noise (C, D) and index sets (C, B): views, until the next block."""
        if self._used == self.block_steps:
            self._block_start = self._generator_states()
            self._fill()
            self._used = 0
        at = self._used
        self._used += 1
        return self._noise_views[at], self._index_views[at]

    def indices(self) -> Indices:
        """Draw index sets (C, B) for one evaluation outside of the chains' steps."""
        if self._order == "epoch":
            return tuple(
                self._shuffled(size, self._index_generator)[:, :batch]
                for size, batch in self._sizes
            )
        return tuple(ix[0] for ix in self._draw_indices(1))

    def state(self) -> dict[str, Tensor]:
        """Return the stream's state, enough to go on from here exactly."""
        names = ("noise_start", "index_start", "noise_now", "index_now")
        states = (*self._block_start, *self._generator_states())
        taken = 0 if self.batches is None else self.batches.taken
        place = torch.tensor([self._used, self._steps_filled, taken])
        return {**dict(zip(names, states, strict=True)), "place": place}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state()`; a loader's batches up to it are taken and left unused."""
        self._used, filled, taken = (int(count) for count in state["place"])
        if self.batches is not None:
            self.batches.skip_to(taken)
        self._block_start = (state["noise_start"], state["index_start"])
        self._set_generators(self._block_start)
        self._steps_filled = max(0, filled - self.block_steps)
        self._fill()
        # `indices()` may have drawn since the block was filled, or no block been filled yet.
        self._set_generators((state["noise_now"], state["index_now"]))
        self._steps_filled = filled

    def _fill(self) -> None:
        self._noise.normal_(generator=self._noise_generator)
        each = [ix.unbind(0) for ix in self._draw_indices(self.block_steps)]
        self._index_views = list(zip(*each, strict=True)) or [()] * self.block_steps
        self._steps_filled += self.block_steps

    def _draw_indices(self, num_steps: int) -> Indices:
        if self._order == "epoch":
            steps = range(self._steps_filled, self._steps_filled + num_steps)
            return tuple(
                self._epochs(steps, plate, *sizes) for plate, sizes in enumerate(self._sizes)
            )
        return tuple(
            torch.randint(
                size,
                (num_steps, self._shape[0], batch),
                generator=self._index_generator,
                device=self._density.device,
            )
            for size, batch in self._sizes
        )

    def _epochs(self, steps: range, plate: int, size: int, batch: int) -> Tensor:
        """Draw (steps, C, batch); no order is kept, as each plate and epoch has another seed."""
        per_epoch = size // batch
        parts = []
        for epoch in range(steps.start // per_epoch, (steps.stop - 1) // per_epoch + 1):
            generator = torch.Generator(self._density.device)
            generator.manual_seed(hash((self._seed, plate, epoch)) % 2**63)
            order = self._shuffled(size, generator)[:, : per_epoch * batch]
            first = epoch * per_epoch
            own = slice(max(steps.start - first, 0), min(steps.stop - first, per_epoch))
            parts.append(order.reshape(len(order), per_epoch, batch).transpose(0, 1)[own])
        return torch.cat(parts)

    def _shuffled(self, size: int, generator: torch.Generator) -> Tensor:
        """Draw a random order (C, N) of the data for each chain."""
        keys = torch.rand(
            (self._shape[0], size),
            dtype=torch.float64,
            generator=generator,
            device=self._density.device,
        )
        return keys.argsort(-1)

    def _set_generators(self, states: tuple[Tensor, Tensor]) -> None:
        self._noise_generator.set_state(states[0])
        self._index_generator.set_state(states[1])

    def _generator_states(self) -> tuple[Tensor, Tensor]:
        return self._noise_generator.get_state(), self._index_generator.get_state()
