"""Samplers that are one another in a limit, draw for draw."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_fe as fe
from inference.conformance import columns
from ppl_fe.inference.dynamics import Dynamics, baoab, psgld, sghmc, sgld, sgnht

C, D, STEPS = 3, 4, 40
STEP_SIZE, TEMPERATURE = 0.05, 1.7
OVERDAMPED = 1e6  # exp(−f√ε) is zero


def stream(seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(C, D, generator=generator, dtype=torch.float64)


def gradient(w: Tensor) -> Tensor:
    """Of a log-density that is not quadratic and couples its directions."""
    return -w - w**3 / 3 - w.sum(-1, keepdim=True)


def positions(
    dynamics: Dynamics,
    own: dict[str, float],
    slope: Callable[[Tensor], Tensor] = gradient,
    temperature: float = TEMPERATURE,
    start: Tensor | None = None,
    errors: Tensor | float = 1.0,
    **state: Tensor,
) -> Tensor:
    """(STEPS, C, D) with the same noise and gradient errors, these times `errors`, for all."""
    settings = columns({"step_size": STEP_SIZE, "temperature": temperature, **own})
    settings = {name: value.expand(C, 1) for name, value in settings.items()}
    noise, wrong = stream(1), stream(2)
    begin = next(stream(3)) if start is None else start
    current: Any = dynamics.init(begin, next(noise), settings)._replace(**state)
    path = []
    for _ in range(STEPS):
        estimate = slope(current.position) + (3.0 * errors * next(wrong) if temperature else 0.0)
        current = dynamics.step(current, estimate, next(noise), settings)
        path.append(current.position)
    return torch.stack(path)


def assert_equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_sghmc_at_full_friction_is_sgld() -> None:
    assert_equal(positions(sghmc, {"friction": 1.0}), positions(sgld, {}))
    off = positions(sghmc, {"friction": 0.9}) - positions(sgld, {})
    assert off.abs().max() > 0.01


def test_sghmc_at_full_friction_is_sgld_on_a_program() -> None:
    y = torch.linspace(-1.0, 2.0, 20)

    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("data", len(y), subsample_size=5):
            pyro.sample("y", dist.Normal(mean, scale), obs=pyro.subsample(y, event_dim=0))

    def draws(kernel: fe.Kernel) -> Tensor:
        tree = fe.sample(
            kernel, y, num_samples=12, warmup_steps=8, compile="eager", progress_bar=False
        )
        return torch.as_tensor(tree.posterior["mean"].values)

    expected = draws(fe.SGLD(model, step_size=0.002, temperature=0.6))
    found = draws(fe.SGHMC(model, step_size=0.002, temperature=0.6, friction=1.0))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.01


def test_sgnht_with_its_thermostat_held_is_baoab() -> None:
    own = {"friction": 1.3}
    assert_equal(positions(sgnht, {**own, "coupling": 0.0}), positions(baoab, own))
    off = positions(sgnht, {**own, "coupling": 1.0}) - positions(baoab, own)
    assert off.abs().max() > 0.01


def test_a_thermostat_may_pass_through_zero() -> None:
    own = {"friction": 0.8, "coupling": 0.0}
    zero = torch.zeros(C, 1, dtype=torch.float64)
    near = positions(sgnht, own, thermostat=zero + 1e-9)
    torch.testing.assert_close(positions(sgnht, own, thermostat=zero), near, rtol=1e-6, atol=1e-7)


def test_frozen_psgld_is_sgld_in_the_coordinates_of_its_metric() -> None:
    own = {"decay": 1.0, "damping": 0.1}
    square = next(stream(4)).square()
    root = psgld.metric(psgld.State(square, square), columns(own)).sqrt()
    assert root.max() > 2 * root.min()
    start = next(stream(3))
    plain = positions(psgld, own, errors=1 / root, start=root * start, square=square)
    in_metric = positions(sgld, {}, lambda u: root * gradient(root * u), start=start)
    assert_equal(plain / root, in_metric)


def test_psgld_without_warm_up_is_sgld() -> None:
    assert_equal(positions(psgld, {"decay": 1.0, "damping": 0.1}), positions(sgld, {}))


@pytest.mark.parametrize("seed", [5, 6])
def test_the_moment_of_psgld_is_that_of_rmsprop_and_adam(seed: int) -> None:
    decay = 0.9
    settings = columns({"step_size": 0.1, "temperature": 1.0, "decay": decay, "damping": 1e-12})
    slopes = stream(seed)
    w = torch.nn.Parameter(torch.zeros(C, D, dtype=torch.float64))
    rmsprop = torch.optim.RMSprop([w], lr=1e-3, alpha=decay)
    adam = torch.optim.Adam([w], lr=1e-3, betas=(0.0, decay), eps=0.0)
    state = psgld.init(w.detach().clone(), w.detach(), settings)
    for _ in range(7):
        w.grad = slope = next(slopes)
        state = psgld.step(state, slope, torch.zeros_like(slope), settings)
        rmsprop.step()
        before = w.detach().clone()
        adam.step()
    assert_equal(state.square, rmsprop.state[w]["square_avg"])
    assert_equal(state.square, adam.state[w]["exp_avg_sq"])
    # Adam's whole step, bias correction included, is G ĝ up to one factor a chain.
    moved = (before - w.detach()) / (psgld.metric(state, settings) * slope)
    assert_equal(moved, moved[:, :1].expand_as(moved))


COLD: dict[str, tuple[Dynamics, dict[str, float]]] = {
    "sgld": (sgld, {}),
    "psgld": (psgld, {"decay": 1.0, "damping": 0.1}),
    "sghmc": (sghmc, {"friction": 1.0}),
    "sgnht": (sgnht, {"friction": OVERDAMPED, "coupling": 1.0}),
    "baoab": (baoab, {"friction": OVERDAMPED}),
}


def descent(momentum: float = 0.0) -> Tensor:
    w = torch.nn.Parameter(next(stream(3)))
    optimizer = torch.optim.SGD([w], lr=STEP_SIZE / 2, momentum=momentum)
    path = []
    for _ in range(STEPS):
        w.grad = -gradient(w.detach())
        optimizer.step()
        path.append(w.detach().clone())
    return torch.stack(path)


@pytest.mark.parametrize("name", COLD)
def test_at_temperature_zero_it_is_gradient_descent(name: str) -> None:
    dynamics, own = COLD[name]
    assert_equal(positions(dynamics, own, temperature=0.0), descent())


def test_sghmc_at_temperature_zero_is_descent_with_momentum() -> None:
    found = positions(sghmc, {"friction": 0.2}, temperature=0.0)
    assert_equal(found, descent(momentum=0.8))
