"""Noise and index sets: reproducible, resumable, uniform, and each chain's own."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from cases.streams import assert_equal, assert_goes_on_exactly, steps
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from ppl_fe.data.sources import LoaderData
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.step.random_stream import Batches, RandomStream


def model(y: Tensor, first: int | None, second: int | None) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    for name, size in (("first", first), ("second", second)):
        with pyro.plate(name, len(y), subsample_size=size):
            batch = pyro.subsample(y, event_dim=0)
            pyro.sample(f"y_{name}", dist.Normal(mean[0], 1.0), obs=batch)


def stream(
    seed: int = 0, chains: int = 4, first: int | None = 2, second: int | None = 3
) -> RandomStream:
    return RandomStream(Density(model, (torch.zeros(10), first, second)), chains, seed)


def test_equal_seeds_give_equal_streams_and_others_do_not() -> None:
    count = 2 * stream().block_steps + 5
    one = steps(stream(seed=7), count)
    assert_equal(one, steps(stream(seed=7), count))
    (noise, sets), (other_noise, other_sets) = one[0], steps(stream(seed=8), 1)[0]
    assert not torch.isclose(noise, other_noise).any()
    assert not torch.equal(torch.cat(sets, 1), torch.cat(other_sets, 1))


def test_shapes_and_no_repetition_from_step_to_step() -> None:
    taken = steps(stream(), 200)
    noise = torch.stack([n for n, _ in taken])
    assert noise.shape == (200, 4, 3)
    assert [tuple(ix.shape) for ix in taken[0][1]] == [(4, 2), (4, 3)]
    assert len(np.unique(noise)) > 0.99 * noise.numel()


def test_the_global_random_state_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = steps(stream(), 3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert_equal(one, steps(stream(), 3))


def test_the_noise_does_not_depend_on_the_plates() -> None:
    with_plates = [noise for noise, _ in steps(stream(), 70)]
    without = [noise for noise, _ in steps(stream(first=None, second=None), 70)]
    assert all(map(torch.equal, with_plates, without))


@pytest.mark.parametrize("taken", [0, 1, 30, 63, 64, 65, 128])
@pytest.mark.parametrize("evaluations", [0, 3])
def test_a_restored_stream_goes_on_exactly(taken: int, evaluations: int) -> None:
    assert_goes_on_exactly(stream(), stream(seed=99), taken, evaluations)


def chi_square(counts: Tensor) -> float:
    """A z score of Pearson's statistic against equal probabilities."""
    expected = counts.sum() / counts.numel()
    freedom = counts.numel() - 1
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return (statistic - freedom) / math.sqrt(2 * freedom)


def test_indices_are_uniform_and_independent_between_places_and_chains() -> None:
    taken = [sets[1] for _, sets in steps(stream(), 6400)]
    indices = torch.stack(taken)  # (steps, chains, 3) in 0..9
    assert abs(chi_square(torch.bincount(indices.flatten(), minlength=10).float())) < 4
    pairs = {
        "within a batch (with replacement)": indices[..., 0] * 10 + indices[..., 1],
        "between chains": indices[:, 0] * 10 + indices[:, 1],
        "between steps": indices[1:] * 10 + indices[:-1],
    }
    for codes in pairs.values():
        assert abs(chi_square(torch.bincount(codes.flatten(), minlength=100).float())) < 4


def test_noise_is_standard_normal_and_independent_between_chains() -> None:
    noise = torch.stack([n for n, _ in steps(stream(), 6400)]).double()
    count = noise.numel()
    assert abs(noise.mean().item()) * math.sqrt(count) < 4
    assert abs(noise.square().mean().item() - 1) * math.sqrt(count / 2) < 4
    assert abs((noise**4).mean().item() - 3) * math.sqrt(count / 96) < 4
    chains = noise.flatten(0, 0).permute(1, 0, 2).flatten(1)
    correlation = torch.corrcoef(chains) - torch.eye(4)
    assert correlation.abs().max().item() * math.sqrt(chains.shape[1]) < 4.5


def on_batches(x: Tensor, y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 10, subsample_size=len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y.float())


def batches_of(data: LoaderData) -> Batches:
    return Batches(data, Density(on_batches, data.first(), data_per_chain=True), 4, seed=5)


def test_batches_of_a_loader_stand_side_by_side() -> None:
    x, y = torch.arange(20.0).view(10, 2), torch.arange(10)
    data = LoaderData(DataLoader(TensorDataset(x, y), batch_size=3, shuffle=True))
    taken: list[Any] = list(islice(batches_of(data), 12))
    again: list[Any] = list(islice(batches_of(data), 12))
    for (inputs, targets), (other, _) in zip(taken, again, strict=True):
        assert (inputs.shape, targets.shape) == ((4, 3, 2), (4, 3))
        assert torch.equal(inputs, x[targets])  # rows and labels stay together
        assert torch.equal(inputs, other)
    assert not torch.equal(taken[0][1][0], taken[0][1][1])
