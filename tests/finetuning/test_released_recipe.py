"""The released recipe: its first steps by hand, and how its scales differ from the posterior's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases.selection import select
from cases.tuning import LABELS, N, X, network
from torch import nn

from ppl_fe.data import TensorData
from ppl_fe.diverged import DivergedError
from ppl_fe.finetuning.objective import Objective, shuffled
from ppl_fe.finetuning.rules.released_recipe import ReleasedCode, ReleasedRun
from ppl_fe.finetuning.scoring import Task

SOURCE = TensorData(X, LABELS, N)


def made(**changed: int) -> ReleasedRun:
    """A run on the classifier, all rows in a minibatch."""
    settings: dict[str, Any] = {"warmup_steps": 6, "num_samples": 4, "thinning": 1, **changed}
    rule = ReleasedCode(data_size=1e3, learning_rate=1e-3, **settings)
    return run_of(rule, SOURCE, N)


def run_of(rule: ReleasedCode, source: TensorData, batch_size: int) -> ReleasedRun:
    net = network()
    task = Task(
        network=net,
        source=source,
        objective=Objective("categorical", torch.device("cpu")),
        likelihood="categorical",
        head=None,
        head_names=(),
        ranked=torch.ones(net.num_parameters, dtype=torch.bool),
        num_selected=4,
        batch_size=batch_size,
        seed=0,
        progress_bar=False,
    )
    return ReleasedRun(rule, task)


def test_plain_steps_are_adamw_with_clipping_and_a_rate_that_rises() -> None:
    released, module = made(warmup_steps=96), network().module.requires_grad_(True)
    named = dict(module.named_parameters())
    biases = [part for name, part in named.items() if "bias" in name]
    rest = [part for name, part in named.items() if "bias" not in name]
    optimizer = torch.optim.AdamW(
        [{"params": rest, "weight_decay": 0.01}, {"params": biases, "weight_decay": 0.0}], lr=0.0
    )
    batches = shuffled(SOURCE, N, 0)
    for step in range(12):
        for group in optimizer.param_groups:  # 1,000 epochs of one step, of 96 for 12,000 steps
            group["lr"] = 1e-3 * min(1.0, step / 8)
        assert released.rate == pytest.approx(1e-3 * min(1.0, step / 8))
        x, y = next(batches)
        released.step((x, y), plain=True)
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    whole = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    torch.testing.assert_close(released.weights.detach(), whole)
    assert (released.scale == 1e-4).all()


def test_the_rates_are_those_of_the_released_command() -> None:
    rule = ReleasedCode(warmup_steps=12_000, num_samples=80, thinning=100)
    source = TensorData(torch.zeros(3_668, 4), torch.zeros(3_668, dtype=torch.long), 3_668)
    released = run_of(rule, source, batch_size=16)  # MRPC
    for steps, rate in ((0, 0.0), (10_000, 4.35e-6), (20_000, 8.70e-6), (300_000, 1e-4)):
        released.num_taken = steps
        assert released.rate == pytest.approx(rate, rel=1e-3)


def test_prior_and_noise_enter_the_gradients() -> None:
    released = made()
    released.num_taken = 1  # at the first step the rate is 0, and there is no noise
    released.weights.data.add_(0.01 * torch.arange(37.0) - 0.1)
    offset = released.weights.detach() - released.anchor
    batch = next(shuffled(SOURCE, N, 0))
    released.step(batch, plain=False)
    n, generator = 1e3, torch.Generator().manual_seed(0)
    first, second = (torch.empty(37).normal_(generator=generator) for _ in range(2))
    assert released.scale.grad is not None
    scale = torch.full((37,), 1e-4)
    # −∂/∂λ [(α−1) log λ − βλ − log λ − |Δ|/λ]
    prior = -(0.01 - 1) / scale + 100 + 1 / scale - offset.abs() / scale**2
    expected = prior / n + math.sqrt(2 / (n * 0.01)) * second
    torch.testing.assert_close(released.scale.grad, expected)
    # Adam's first step is the learning rate, whatever the gradient's size.
    moved = released.scale.detach() - scale
    torch.testing.assert_close(moved, -0.01 * expected.sign(), rtol=1e-4, atol=1e-6)
    released.working.weights.copy_(released.anchor + offset)
    rest = released.weights.grad
    assert rest is not None
    reference = made()
    reference.weights.data.copy_(released.anchor + offset)
    plain = torch.empty_like(released.anchor)
    reference.working.differentiate(batch)[1].write_to(plain)
    plain = plain / max(1.0, plain.norm().item())
    added = offset.sign() / 1e-4 / n + math.sqrt(2 / (n * 1e-3)) * first
    torch.testing.assert_close(rest, plain + added, rtol=1e-4, atol=1e-4)


def test_lengths_and_the_mean_of_kept_scales() -> None:
    short = made(num_samples=1)
    mean, sd = short.run()
    torch.testing.assert_close(mean, short.scale.detach().clamp_min(1e-8))
    assert (sd == 0).all()
    # Five of six warm-up steps are plain, so that λ has taken two steps in all.
    assert short._optimizers[1].state[short.scale]["step"] == 2


def test_its_scales_are_not_monotone_in_the_distance_moved() -> None:
    found = select(
        network(), (X, LABELS), rule="released_code", num_samples=20, warmup_steps=200, batch_size=N
    )
    assert found.settings["data_size"] == 1e12
    assert "not those of the stated posterior" in found.notes[0]
    assert found.num_selected == 4


def test_what_is_not_finite_is_said() -> None:
    with pytest.raises(DivergedError, match="lower learning_rate"):
        select(network(), (X, LABELS), rule="released_code", learning_rate=1e30)
