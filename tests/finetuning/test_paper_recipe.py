"""The released recipe: its first steps by hand, and how its scales differ from the posterior's."""

from __future__ import annotations

import math

import pytest
import torch
from cases.selection import select
from cases.tuning import LABELS, N, X, network
from torch import nn

from ppl_fe.data import TensorData
from ppl_fe.diverged import DivergedError
from ppl_fe.finetuning.objective import Objective, shuffled
from ppl_fe.finetuning.rules.released_recipe import PaperRecipe, Recipe

SOURCE = TensorData(X, LABELS, N)


def recipe(**changed: float) -> Recipe:
    settings = {
        "warmup_steps": 6,
        "num_samples": 4,
        "thinning": 1,
        "alpha": 0.01,
        "beta": 100.0,
        "data_size": 1e3,
        "learning_rate": 1e-3,
        "batch_size": N,
        "seed": 0,
    }
    return Recipe(**{**settings, **changed})  # type: ignore[arg-type]


def made(settings: Recipe) -> PaperRecipe:
    return PaperRecipe(network(), Objective("categorical", torch.device("cpu")), SOURCE, settings)


def test_plain_steps_are_adamw_with_clipping() -> None:
    paper, module = made(recipe()), network().module.requires_grad_(True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    batches = shuffled(SOURCE, N, 0)
    for _ in range(5):
        x, y = next(batches)
        paper.step((x, y), plain=True)
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    whole = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    torch.testing.assert_close(paper.weights.detach(), whole)
    assert (paper.scale == 1e-4).all()


def test_prior_and_noise_enter_the_gradients() -> None:
    settings = recipe()
    paper = made(settings)
    paper.weights.data.add_(0.01 * torch.arange(37.0) - 0.1)
    offset = paper.weights.detach() - paper.anchor
    batch = next(shuffled(SOURCE, N, 0))
    paper.step(batch, plain=False)
    n, generator = 1e3, torch.Generator().manual_seed(0)
    first, second = (torch.empty(37).normal_(generator=generator) for _ in range(2))
    assert paper.scale.grad is not None
    scale = torch.full((37,), 1e-4)
    # −∂/∂λ [(α−1) log λ − βλ − log λ − |Δ|/λ]
    prior = -(0.01 - 1) / scale + 100 + 1 / scale - offset.abs() / scale**2
    expected = prior / n + math.sqrt(2 / (n * 0.01)) * second
    torch.testing.assert_close(paper.scale.grad, expected)
    # Adam's first step is the learning rate, whatever the gradient's size.
    moved = paper.scale.detach() - scale
    torch.testing.assert_close(moved, -0.01 * expected.sign(), rtol=1e-4, atol=1e-6)
    paper.working.weights.copy_(paper.anchor + offset)
    rest = paper.weights.grad
    assert rest is not None
    reference = made(settings)
    reference.weights.data.copy_(paper.anchor + offset)
    plain = torch.empty_like(paper.anchor)
    reference.working.differentiate(batch)[1].write_to(plain)
    plain = plain / max(1.0, plain.norm().item())
    added = offset.sign() / 1e-4 / n + math.sqrt(2 / (n * 1e-3)) * first
    torch.testing.assert_close(rest, plain + added, rtol=1e-4, atol=1e-4)


def test_lengths_and_the_mean_of_kept_scales() -> None:
    short = made(recipe(num_samples=1))
    mean, sd = short.run(progress_bar=False)
    torch.testing.assert_close(mean, short.scale.detach().clamp_min(1e-8))
    assert (sd == 0).all()
    # Five of six warm-up steps are plain, so that λ has taken two steps in all.
    assert short._optimizers[1].state[short.scale]["step"] == 2


def test_its_scales_are_not_monotone_in_the_distance_moved() -> None:
    found = select(
        network(), (X, LABELS), method="paper", num_samples=20, warmup_steps=200, batch_size=N
    )
    assert found.settings["data_size"] == 1e12
    assert "not those of the stated posterior" in found.notes[0]
    assert found.num_selected == 4


def test_what_is_not_finite_is_said() -> None:
    with pytest.raises(DivergedError, match="lower learning_rate"):
        select(network(), (X, LABELS), method="paper", learning_rate=1e30)
