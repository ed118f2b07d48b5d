"""A DataLoader of known length as endless checked batches, shared or one stream a chain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

from ppl_fe.data.rows import Inputs, check_rows, convert, split
from ppl_fe.ranks import own_part


class LoaderData:
    """A ``DataLoader`` of known length: endless batches of (inputs, targets) on the CPU.

    Args:
        loader: over a map-style data set that it reads whole, in order or shuffled. Its items or
            batches are (inputs, targets) or a mapping with ``labels`` or ``targets``.

    Attributes:
        loader: the loader given.
        num_data: N, the data set's length.
        batch_size: B, the loader's, at most N.

    Raises:
        ValueError: the loader does not know its length, has no batch size or a sampler that
            chooses among the items, or gives no batch.

    Example:
        >>> dataset = torch.utils.data.TensorDataset(torch.arange(4.0).view(4, 1), torch.zeros(4))
        >>> data = LoaderData(DataLoader(dataset, batch_size=2))
        >>> data.num_data, data.batch_size, data.first()[0].flatten().tolist()
        (4, 2, [0.0, 1.0])
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        dataset = loader.dataset
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise ValueError(
                f"the loader must know its length, but {type(dataset).__name__} has none; "
                "use a map-style Dataset"
            )
        if loader.batch_size is None:
            raise ValueError(
                "the loader must know its length in batches of one size, but batch_size is None; "
                "give the DataLoader batch_size instead of a batch sampler"
            )
        self.loader = loader
        self.num_data = len(dataset)
        sampler: Any = loader.sampler
        # Under any other sampler n would not be the data set's length, nor each item as likely.
        plain = isinstance(sampler, SequentialSampler) or (
            isinstance(sampler, RandomSampler) and not sampler.replacement
        )
        if self.num_data and not (plain and len(sampler) == self.num_data):
            raise ValueError(
                f"the loader's {type(sampler).__name__} does not give each item once; choose items "
                "by torch.utils.data.Subset and use shuffle=True or no sampler"
            )
        if len(loader) == 0:
            raise ValueError(
                f"the loader gives no batch: {self.num_data} items, "
                f"batch_size={loader.batch_size}, drop_last={loader.drop_last}"
            )
        self.batch_size = min(loader.batch_size, self.num_data)

    def first(self) -> tuple[Inputs, Tensor]:
        """Give the first batch of a fresh pass: inputs (B, ...), targets (B, ...).

        Of several ranks (`ppl_fe.ranks`) each gets its own rows of it.

        Raises:
            TypeError: the batch is no pair or mapping of tensors.
            ValueError: lengths that disagree, NaN or infinite values.

        Example:
            >>> dataset = torch.utils.data.TensorDataset(torch.ones(3, 1), torch.zeros(3))
            >>> inputs, targets = LoaderData(DataLoader(dataset, batch_size=2)).first()
            >>> inputs.shape, targets.shape
            (torch.Size([2, 1]), torch.Size([2]))
        """
        return own_part(next(self.batches()))

    def batches(self) -> Iterator[tuple[Inputs, Tensor]]:
        """Give batches for ever, one pass over the loader after another, each batch checked.

        Example:
            >>> rows = torch.arange(3.0).view(3, 1)
            >>> dataset = torch.utils.data.TensorDataset(rows, torch.zeros(3))
            >>> batches = LoaderData(DataLoader(dataset, batch_size=2)).batches()
            >>> [len(next(batches)[1]) for _ in range(4)]
            [2, 1, 2, 1]
        """
        return _endless(self.loader)

    def one_pass(self) -> Iterator[tuple[Inputs, Tensor]]:
        """Give every item once, in the data set's order; the last batch may be smaller.

        Raises:
            ValueError: at the end, a collate function that made more or fewer rows than items.

        Example:
            >>> rows = torch.arange(3.0).view(3, 1)
            >>> dataset = torch.utils.data.TensorDataset(rows, torch.zeros(3))
            >>> [len(y) for _, y in LoaderData(DataLoader(dataset, batch_size=2)).one_pass()]
            [2, 1]
        """
        dataset: Any = self.loader.dataset
        ordered: DataLoader[Any] = DataLoader(
            dataset, batch_size=self.batch_size, collate_fn=self.loader.collate_fn
        )
        taken = 0
        for inputs, targets in _checked(ordered):
            taken += len(targets)
            yield inputs, targets
        if taken != self.num_data:
            raise ValueError(
                f"the loader's collate_fn makes {taken} rows for {self.num_data} items, so that a "
                "loss an item is no loss a row; let the data set have an item a row"
            )

    def spread(self) -> tuple[Inputs, Tensor]:
        """Give B items at equal distances, the data set's first and last among them.

        Two calls give the same, as far as a data set is the same or draws its noise from torch:
        the global random state is set for this, and put back.

        Example:
            >>> rows = torch.arange(5.0).view(5, 1)
            >>> dataset = torch.utils.data.TensorDataset(rows, torch.zeros(5))
            >>> LoaderData(DataLoader(dataset, batch_size=3)).spread()[0].flatten().tolist()
            [0.0, 2.0, 4.0]
        """
        last, gaps = self.num_data - 1, max(1, self.batch_size - 1)
        dataset: Any = self.loader.dataset
        picked: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=[place * last // gaps for place in range(self.batch_size)],
            collate_fn=self.loader.collate_fn,
        )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            return next(_checked(picked))

    def replicas(self, num_chains: int, seed: int) -> list[Iterator[tuple[Inputs, Tensor]]]:
        """Give each chain its own endless shuffled batches of exactly B items.

        Each pass is a new permutation from a generator of (seed, chain); what does not fill a
        batch is left out of that pass. The global random state is untouched.

        Args:
            num_chains: C.
            seed: a non-negative integer; equal seeds give equal batches.

        Returns:
            C iterators.

        Raises:
            ValueError: no chains, or a negative seed.

        Example:
            >>> rows = torch.arange(4.0).view(4, 1)
            >>> dataset = torch.utils.data.TensorDataset(rows, torch.zeros(4))
            >>> chains = LoaderData(DataLoader(dataset, batch_size=2)).replicas(2, seed=0)
            >>> [next(chain)[0].shape for chain in chains]
            [torch.Size([2, 1]), torch.Size([2, 1])]
        """
        if num_chains < 1:
            raise ValueError(f"num_chains must be at least 1, got {num_chains}")
        if seed < 0:
            raise ValueError(f"seed must be non-negative, got {seed}")
        return [_endless(self._replica(seed, chain)) for chain in range(num_chains)]

    def _replica(self, seed: int, chain: int) -> DataLoader[Any]:
        state = np.random.SeedSequence([seed, chain]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0]))
        dataset: Any = self.loader.dataset
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=RandomSampler(dataset, generator=generator),
            collate_fn=self.loader.collate_fn,
            num_workers=0,
            drop_last=True,
            generator=generator,
        )


def _endless(loader: DataLoader[Any]) -> Iterator[tuple[Inputs, Tensor]]:
    while True:
        yield from _checked(loader)


def _checked(loader: DataLoader[Any]) -> Iterator[tuple[Inputs, Tensor]]:
    for batch in loader:
        inputs, targets = convert(*split(batch, "a batch"), "a batch")
        check_rows(inputs, targets, "a batch")
        if isinstance(inputs, Tensor):
            yield inputs.cpu(), targets.cpu()
        else:
            yield {name: tensor.cpu() for name, tensor in inputs.items()}, targets.cpu()
