"""Loaders: endless checked batches, each chain its own."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from cases.data import Items, Stream, X, Y, loader
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from ppl_fe.data.sources import LoaderData, as_data
from ppl_fe.finetuning.objective import one_pass


def loaded(data: Any, **options: Any) -> LoaderData:
    result = as_data(data, **options)
    assert isinstance(result, LoaderData)
    return result


def test_a_loader_keeps_its_order_and_starts_again() -> None:
    data = loaded(loader())
    assert (data.num_data, data.batch_size) == (10, 4)
    inputs, targets = data.first()
    assert isinstance(inputs, Tensor)
    assert torch.equal(inputs, X[:4])
    assert torch.equal(targets, Y[:4])
    batches = [targets.tolist() for _, targets in islice(data.batches(), 5)]
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_batch_size_above_the_data_is_all_the_data() -> None:
    data = loaded(loader(batch_size=64))
    assert data.batch_size == 10
    assert sorted(next(data.replicas(1, 0)[0])[1].tolist()) == Y.tolist()


def test_loaders_of_mappings_and_their_collate_functions() -> None:
    items = Items([{"ids": torch.arange(i + 1), "label": i} for i in range(4)])

    def collate(batch: list[Any]) -> dict[str, Tensor]:
        rows = [item["ids"] for item in batch]
        return {
            "ids": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
            "labels": torch.tensor([item["label"] for item in batch]),
        }

    data = loaded(DataLoader(items, batch_size=2, collate_fn=collate))
    for inputs, targets in (data.first(), next(data.replicas(1, 0)[0])):
        assert isinstance(inputs, dict)
        assert inputs["ids"].shape == (2, int(targets.max()) + 1)


def test_each_chain_draws_its_own_full_batches() -> None:
    data = loaded(loader())

    def draw(seed: int) -> list[list[list[int]]]:
        chains = data.replicas(3, seed)
        return [[targets.tolist() for _, targets in islice(chain, 6)] for chain in chains]

    state = torch.random.get_rng_state()
    draws = draw(0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert draws == draw(0)
    assert draws != draw(1)
    assert draws[0] != draws[1] != draws[2] != draws[0]
    for chain in draws:
        assert all(len(batch) == 4 for batch in chain)
        # Two full batches a pass: within a pass no item comes twice, and passes differ.
        passes = [chain[i] + chain[i + 1] for i in (0, 2, 4)]
        assert all(len(set(items)) == 8 for items in passes)
        assert passes[0] != passes[1]


def test_a_chain_does_not_depend_on_the_others() -> None:
    data = loaded(loader(shuffle=True))
    alone = [t.tolist() for _, t in islice(data.replicas(1, 5)[0], 4)]
    chains = data.replicas(2, 5)
    together = []
    for _ in range(4):
        next(chains[1])
        together.append(next(chains[0])[1].tolist())
    assert alone == together


def test_replicas_draw_uniformly() -> None:
    counts = torch.zeros(10)
    chains = loaded(loader(batch_size=3)).replicas(4, seed=11)
    for chain in chains:
        for _, targets in islice(chain, 300):
            counts[targets] += 1
    # A pass gives 9 of 10 items, so an item's count is binomial with 4 * 100 passes, p = 0.9.
    z = (counts - 360) / (400 * 0.9 * 0.1) ** 0.5
    assert z.abs().max() < 4.5


@pytest.mark.parametrize(("num_chains", "seed"), [(0, 0), (2, -1)])
def test_replicas_refuse_bad_numbers(num_chains: int, seed: int) -> None:
    with pytest.raises(ValueError, match=r"num_chains must|seed must"):
        loaded(loader()).replicas(num_chains, seed)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: DataLoader(Stream(), batch_size=2), "must know its length"),
        (lambda: loader(batch_size=None), "must know its length .* batch_size is None"),
        (
            lambda: DataLoader(
                TensorDataset(X, Y), batch_sampler=BatchSampler(SequentialSampler(X), 2, False)
            ),
            "batch_size is None",
        ),
        (lambda: loader(sampler=SubsetRandomSampler([0, 1])), "SubsetRandomSampler does not give"),
        (lambda: loader(sampler=WeightedRandomSampler([1.0] * 10, 10)), "WeightedRandomSampler"),
        (lambda: loader(sampler=RandomSampler(X, replacement=True)), "RandomSampler does not give"),
        (lambda: loader(sampler=RandomSampler(X, num_samples=3)), "RandomSampler does not give"),
        (lambda: loader(batch_size=64, drop_last=True), "no batch: 10 items, batch_size=64"),
        (lambda: DataLoader(Items([])), "no batch: 0 items"),
    ],
)
def test_loaders_that_cannot_serve_are_refused(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_data(given())


def test_batches_of_a_loader_are_checked() -> None:
    inputs = X.clone()
    inputs[5, 0] = float("nan")
    data = loaded(DataLoader(TensorDataset(inputs, Y), batch_size=4))
    data.first()
    with pytest.raises(ValueError, match=r"a batch: inputs has 1 NaN .* index \(1, 0\)"):
        list(islice(data.batches(), 3))
    with pytest.raises(ValueError, match=r"a batch must be .* got 1 entries"):
        loaded(DataLoader(TensorDataset(X), batch_size=4)).first()


def test_one_pass_over_a_loader_is_its_own_batches() -> None:
    batches = [targets.tolist() for _, targets in one_pass(loaded(loader()), 3)]
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
