"""Every planted fault is flagged by the check meant for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import xarray as xr
from cases.runs import Y, gaussian, mean_of, mixture, quartic, run, two_sites, wide
from torch import Tensor

import ppl_fe as fe
from ppl_fe.inference.dynamics import sgld
from ppl_fe.inference.program.density import Indices
from ppl_fe.inference.step.chains import Chains
from ppl_fe.inference.step.random_stream import RandomStream
from ppl_fe.inference.step.step_function import Statistics

Fault = Callable[[pytest.MonkeyPatch], xr.DataTree]


def step_too_large(_: pytest.MonkeyPatch) -> xr.DataTree:
    # εa = 2 of at most 4: T_eff = 1/(1 − 2/4) along the first coordinate.
    return run(fe.SGLD(gaussian, step_size=2.0), thinning=3)


def one_block_too_hot(_: pytest.MonkeyPatch) -> xr.DataTree:
    # εa = 2 again, but for one of 21 coordinates only: overall it is 10 % off, here 100 %.
    return run(fe.SGLD(two_sites, step_size=2.0), thinning=3)


def tiny_batches(_: pytest.MonkeyPatch) -> xr.DataTree:
    # One datum of 40 a step: s² = 40² · var(y), εs²/4 = 2 at ε = 0.005 or so.
    return run(fe.SGLD(lambda y: mean_of(y, 1), step_size=0.005), Y, thinning=5)


def noisier_than_friction_allows(_: pytest.MonkeyPatch) -> xr.DataTree:
    return run(fe.SGHMC(lambda y: mean_of(y, 1), step_size=0.02), Y, num_samples=100)


def too_little_noise(monkeypatch: pytest.MonkeyPatch) -> xr.DataTree:
    following = RandomStream.next

    def colder(self: RandomStream) -> tuple[Tensor, Indices]:
        noise, indices = following(self)
        return 0.8 * noise, indices  # T = 0.64

    monkeypatch.setattr(RandomStream, "next", colder)
    return run(fe.BAOAB(gaussian, step_size=0.25, friction=2.0), thinning=4)


def no_warm_up(_: pytest.MonkeyPatch) -> xr.DataTree:
    start = {"w": torch.full((4, 3), 30.0)}
    return run(fe.SGLD(gaussian, step_size=0.1), warmup_steps=0, initial_params=start)


def warm_up_cut_short(_: pytest.MonkeyPatch) -> xr.DataTree:
    with pytest.warns(RuntimeWarning, match="shorter than five relaxation times"):
        return run(fe.SGLD(gaussian), warmup_steps=100)


def still_falling(_: pytest.MonkeyPatch) -> xr.DataTree:
    # A start of many sd, and draws that end after one relaxation time: no plateau.
    start = {"w": 30.0 + torch.randn(4, 3, generator=torch.Generator().manual_seed(0))}
    return run(fe.SGLD(gaussian, step_size=0.01), warmup_steps=50, initial_params=start)


def another_mode(_: pytest.MonkeyPatch) -> xr.DataTree:
    start = {"w": torch.tensor([8.0, 8.0, -8.0, 8.0])}
    return run(fe.BAOAB(mixture, step_size=0.2, friction=2.0), thinning=5, initial_params=start)


def same_rows(monkeypatch: pytest.MonkeyPatch) -> xr.DataTree:
    drawing = RandomStream._draw_indices

    def shared(self: RandomStream, num_steps: int) -> Indices:
        return tuple(ix[:, :1].expand_as(ix).clone() for ix in drawing(self, num_steps))

    monkeypatch.setattr(RandomStream, "_draw_indices", shared)
    return run(fe.SGLD(mean_of, step_size=0.002), Y, thinning=5)


def a_chain_that_stays(monkeypatch: pytest.MonkeyPatch) -> xr.DataTree:
    step = sgld.step

    def halting(state: Any, *given: Any) -> sgld.State:
        moves = (torch.arange(4) != 2)[:, None]
        return sgld.State(torch.where(moves, step(state, *given).position, state.position))

    monkeypatch.setattr(sgld, "step", halting)
    return run(fe.SGLD(gaussian, step_size=0.3), thinning=5)


def a_chain_that_diverges(_: pytest.MonkeyPatch) -> xr.DataTree:
    start = {"x": torch.tensor([0.0, 1.0, 1e3, -1.0])}
    with pytest.warns(RuntimeWarning, match="left out: chain 2"):
        return run(fe.SGLD(quartic, step_size=0.1), initial_params=start)


def slow_coordinates(_: pytest.MonkeyPatch) -> xr.DataTree:
    return run(fe.BAOAB(wide, step_size=0.25, friction=2.0), thinning=2)


def interrupted(monkeypatch: pytest.MonkeyPatch) -> xr.DataTree:
    advance, taken = Chains.advance, 0

    def until(self: Chains) -> Statistics:
        nonlocal taken
        taken += 1
        if taken > 350:
            raise KeyboardInterrupt
        return advance(self)

    monkeypatch.setattr(Chains, "advance", until)
    with pytest.warns(RuntimeWarning, match="interrupted: 150 of 400"):
        return run(fe.SGLD(gaussian, step_size=0.3))


def one_chain(_: pytest.MonkeyPatch) -> xr.DataTree:
    return run(fe.SGLD(gaussian, step_size=0.3), num_chains=1)


def too_few_draws(_: pytest.MonkeyPatch) -> xr.DataTree:
    return run(fe.BAOAB(gaussian, step_size=0.25, friction=1.0), num_samples=50, thinning=10)


# The checks meant for it, and the one of all failures to act on first.
FAULTS: list[tuple[Fault, set[str], str]] = [
    (step_too_large, {"stiff_temperature", "temperature", "gradient_noise"}, "gradient_noise"),
    (one_block_too_hot, {"stiff_temperature", "block_temperature"}, "gradient_noise"),
    (tiny_batches, {"gradient_noise", "temperature"}, "gradient_noise"),
    (noisier_than_friction_allows, {"predicted_excess"}, "predicted_excess"),
    (too_little_noise, {"temperature", "kinetic_temperature"}, "temperature"),
    (no_warm_up, {"drift", "warmup_length"}, "warmup_length"),
    (warm_up_cut_short, {"warmup_length"}, "warmup_length"),
    (still_falling, {"drift", "warmup_length", "run_length", "r_hat"}, "warmup_length"),
    (another_mode, {"chain_apart", "r_hat", "ess_bulk"}, "chain_apart"),
    (same_rows, {"shared_minibatches"}, "shared_minibatches"),
    (a_chain_that_stays, {"stuck_chains", "r_hat"}, "stuck_chains"),
    (a_chain_that_diverges, {"failed_chains"}, "failed_chains"),
    (slow_coordinates, {"coordinate_r_hat", "coordinates_unmixed", "layer_unmixed"}, "chain_apart"),
    (interrupted, {"interrupted"}, "interrupted"),
    (one_chain, {"r_hat"}, "warmup_length"),
    (too_few_draws, {"ess_bulk", "ess_tail"}, "r_hat"),
]


# Each of them fails the checks that another fault fails, too.
LIKE_OTHERS = {one_block_too_hot, tiny_batches, still_falling}


@pytest.mark.parametrize(
    ("fault", "meant", "first"),
    [
        pytest.param(*each, marks=pytest.mark.thorough) if each[0] in LIKE_OTHERS else each
        for each in FAULTS
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_check_meant_for_it_fails(
    fault: Fault, meant: set[str], first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = fe.diagnose(fault(monkeypatch))
    print(verdict)
    assert meant <= set(verdict.failures)
    assert verdict.failures[0] == first
    assert not verdict.passed
    for check in verdict.checks:
        assert bool(check.advice) is not check.passed
