"""What two chains would both select, where it is known how much that is."""

from __future__ import annotations

import math

import pytest
import torch
from cases.selection import Means, observed_weights, planted, select
from scipy.special import owens_t
from scipy.stats import norm
from torch import Tensor

from ppl_fe.finetuning.bayestune.chain_agreement import (
    MOST_WATCHED,
    ChainAgreement,
    some_weights,
)
from ppl_fe.finetuning.selection import Selection
from ppl_fe.networks.flat import FlatNetwork


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_chains_of_normal_scales_share_what_an_orthant_holds(correlation: float) -> None:
    size, share, chains = 40_000, 0.05, 3
    generator = torch.Generator().manual_seed(0)
    common = math.sqrt(correlation) * torch.randn(size, generator=generator)
    watched = ChainAgreement(torch.arange(size), chains)
    for chain in range(chains):
        own = math.sqrt(1 - correlation) * torch.randn(size, generator=generator)
        for start in range(0, size, 7000):
            at = slice(start, start + 7000)
            watched.add(chain, at, (common + own)[at])
    cut = norm.isf(share)
    both = share - 2 * owens_t(cut, math.sqrt((1 - correlation) / (1 + correlation)))
    error = math.sqrt(both / size) / share  # of one of three pairs
    assert watched.shared(share) == pytest.approx(both / share, abs=3 * error)


def chosen(data: Tensor) -> Selection:
    return select(
        FlatNetwork(Means(len(data))), (torch.zeros(1, 1), data[None]), rule="bayestune",
        likelihood=observed_weights, data_size=1.0, sparsity=0.1, num_chains=2,
        warmup_steps=60, num_samples=10, thinning=3,
    )  # fmt: skip


def test_what_must_move_is_shared_and_the_rest_by_chance() -> None:
    generator = torch.Generator().manual_seed(1)
    moved = chosen(planted(500, generator))  # fifty, a tenth
    assert moved.settings["agreement"] >= 0.96
    assert not any("two chains alone" in note for note in moved.notes)
    still = chosen(torch.zeros(500))
    # By chance a tenth of the fifty, ± √(50 · 0.1 · 0.9 · 0.9) of them.
    assert still.settings["agreement"] == pytest.approx(0.1, abs=3 * 2.0 / 50)
    assert any("two chains alone share" in note for note in still.notes)


def test_one_chain_alone_says_nothing_of_it() -> None:
    data = (torch.zeros(1, 1), torch.zeros(1, 40))
    found = select(
        FlatNetwork(Means(40)), data, rule="bayestune", likelihood=observed_weights, num_chains=1,
        warmup_steps=10, num_samples=6, thinning=1,
    )  # fmt: skip
    assert found.settings["agreement"] is None


def test_of_many_weights_some_are_watched_and_none_of_the_head() -> None:
    size, head = 10 * MOST_WATCHED, [slice(5, 9), slice(2 * MOST_WATCHED, 4 * MOST_WATCHED)]
    some = some_weights(size, head)
    assert len(some) == pytest.approx(0.8 * MOST_WATCHED * 0.95, rel=0.02)  # some came twice
    assert bool((some.diff() > 0).all())
    assert not ((some >= head[1].start) & (some < head[1].stop)).any()
