"""Weights that must move, planted in a regression: what the automatic weight of the data finds."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

import ppl_fe as fe

NUM_WEIGHTS, NUM_MOVED = 10_000, 50


def planted(rows: int, least: float, most: float) -> tuple[fe.FlatNetwork, Tensor, Tensor, Tensor]:
    """A linear regression of noise 1, fifty of whose coefficients moved by `least` to `most`."""
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(NUM_WEIGHTS, 1, bias=False)
    x = torch.randn(rows, NUM_WEIGHTS, generator=generator)
    moved = torch.zeros(NUM_WEIGHTS)
    places = torch.randperm(NUM_WEIGHTS, generator=generator)[:NUM_MOVED]
    signs = 2 * torch.randint(2, (NUM_MOVED,), generator=generator) - 1
    moved[places] = torch.linspace(least, most, NUM_MOVED) * signs
    with torch.no_grad():
        y = linear(x)[:, 0] + x @ moved + torch.randn(rows, generator=generator)
    return fe.FlatNetwork(linear), x, y, moved != 0


def selected(
    network: fe.FlatNetwork, x: Tensor, y: Tensor, data_size: float | Literal["auto"]
) -> fe.Selection:
    rule = fe.BayesTune(
        scales="expected", data_size=data_size, num_chains=1, num_samples=40, warmup_steps=400,
        thinning=5,
    )  # fmt: skip
    return fe.select_parameters(
        network, (x, y), likelihood="normal", rule=rule, sparsity=NUM_MOVED / NUM_WEIGHTS,
        batch_size=None, progress_bar=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "least", "most"),
    [
        (100, 2.0, 2.0),
        (300, 0.5, 1.5),
        (1000, 0.2, 0.6),
        (1000, 0.1, 0.3),
        (10_000, 0.05, 0.15),
        (10_000, 0.02, 0.06),
    ],
)
def test_as_many_are_found_as_at_the_best_weight(rows: int, least: float, most: float) -> None:
    network, x, y, moved = planted(rows, least, most)

    def found(data_size: float | Literal["auto"]) -> int:
        return int((selected(network, x, y, data_size).mask & moved).sum())

    automatic = found("auto")
    fixed = {times: found(float(times * rows)) for times in (1, 3, 10, 100)}
    print(f"{rows} rows, {least} to {most}: automatic {automatic}, times n {fixed}")
    assert automatic >= max(fixed.values()) - round(0.05 * NUM_MOVED)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "least", "most", "told"),
    [
        (100, 0.1, 0.1, True),
        (1000, 0.02, 0.02, True),
        (10_000, 0.005, 0.005, True),
        (1000, 0.4, 0.8, False),
        (10_000, 0.05, 0.15, False),
    ],
)
def test_where_nothing_can_be_found_the_notes_say_so(
    rows: int, least: float, most: float, told: bool
) -> None:
    network, x, y, moved = planted(rows, least, most)
    found = selected(network, x, y, "auto")
    hits = int((found.mask & moved).sum())
    print(f"{rows} rows, {least} to {most}: {hits} found; {found.notes}")
    assert (hits < 10) is told
    assert any("by the choice of the rows alone" in note for note in found.notes) is told
