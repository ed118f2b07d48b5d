"""Epoch order and micro-batches: every datum once, orders anew, and one estimate from many."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from cases.streams import assert_goes_on_exactly, steps
from exact import mcse_of_mean, z_score
from torch import Tensor

import ppl_fe as fe
from ppl_fe.inference.program.density import Density, Indices
from ppl_fe.inference.step.gradients import (
    Anchor,
    Batch,
    accumulated,
    control_variate,
    exact_evaluation,
)
from ppl_fe.inference.step.gradients import minibatch as minibatch_estimator
from ppl_fe.inference.step.random_stream import RandomStream

CHAINS = 3


def two_plates(first: Tensor, second: Tensor, sizes: tuple[int, int]) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    for name, y, size in (("first", first, sizes[0]), ("second", second, sizes[1])):
        with pyro.plate(name, len(y), subsample_size=size):
            batch = pyro.subsample(y, event_dim=0)
            pyro.sample(f"y_{name}", dist.StudentT(4.0, w[0], w[1].exp()), obs=batch)


def density(sizes: tuple[int, int] = (4, 4), num_data: tuple[int, int] = (12, 23)) -> Density:
    generator = torch.Generator().manual_seed(40)
    y = [torch.randn(n, generator=generator, dtype=torch.float64) for n in num_data]
    return Density(two_plates, (*y, sizes))


def stream(seed: int = 0, **given: Any) -> RandomStream:
    options = {"order": "epoch", **given}
    return RandomStream(density(), CHAINS, seed, **options)


def index_sets(source: RandomStream, count: int) -> list[Indices]:
    return [sets for _, sets in steps(source, count)]


def epochs(taken: list[Indices], plate: int, per_epoch: int) -> Tensor:
    """(epochs, C, data of an epoch)."""
    sets = torch.stack([indices[plate] for indices in taken])
    whole = sets.reshape(-1, per_epoch, *sets.shape[1:])
    return whole.transpose(1, 2).flatten(2)


# 12 data in batches of 4; 23 with 3 left over, or 7 of them by two micro-batches.
@pytest.mark.parametrize(("micro_batches", "per_epoch"), [(1, (3, 5)), (2, (1, 2))])
def test_every_datum_once_an_epoch_and_chain(
    micro_batches: int, per_epoch: tuple[int, int]
) -> None:
    source = stream(micro_batches=micro_batches)
    taken = index_sets(source, 240)
    assert source.block_steps == 64  # so that the end of a block cuts through an epoch
    whole = epochs(taken, 0, per_epoch[0]).sort(-1).values
    if micro_batches == 1:
        assert torch.equal(whole, torch.arange(12).expand_as(whole))
    assert (whole.diff(dim=-1) > 0).all()
    cut = epochs(taken, 1, per_epoch[1])
    assert cut.shape[-1] == per_epoch[1] * 4 * micro_batches
    assert (cut.sort(-1).values.diff(dim=-1) > 0).all()  # none twice
    assert cut.max() == 22


def test_what_an_epoch_leaves_over_changes_and_is_fair() -> None:
    cut = epochs(index_sets(stream(), 5 * 500), 1, 5)  # 500 epochs of 20 of the 23 data
    seen = torch.zeros(500, CHAINS, 23).scatter_(-1, cut, 1.0)
    left_over = (1 - seen).mean((0, 1))
    p, count = 3 / 23, 500 * CHAINS
    assert ((left_over - p).abs() < 4.5 * (p * (1 - p) / count) ** 0.5).all()
    first = torch.bincount(cut[..., 0].flatten(), minlength=23) / count
    assert ((first - 1 / 23).abs() < 4.5 * (1 / 23 / count) ** 0.5).all()


def test_orders_differ_between_epochs_chains_plates_and_seeds() -> None:
    equal = density((5, 5), (23, 23))

    def orders(seed: int) -> Tensor:
        taken = index_sets(RandomStream(equal, CHAINS, seed, order="epoch"), 4 * 50)
        both = torch.stack([epochs(taken, plate, 4) for plate in (0, 1)])
        return both.flatten(0, 2)  # (plates · epochs · chains, 20)

    found = torch.cat([orders(0), orders(1)])
    assert len(torch.unique(found, dim=0)) == len(found) == 2 * 2 * 50 * CHAINS
    assert torch.equal(orders(1), orders(1))


@pytest.mark.parametrize("taken", [0, 1, 2, 63, 64, 130])
@pytest.mark.parametrize("evaluations", [0, 3])
def test_a_restored_stream_goes_on_exactly(taken: int, evaluations: int) -> None:
    assert_goes_on_exactly(stream(seed=7), stream(seed=7), taken, evaluations)


def test_more_data_a_step_than_an_epoch_holds_are_refused() -> None:
    with pytest.raises(ValueError, match="micro_batches=5 takes more data a step than an epoch"):
        stream(micro_batches=5)  # 20 of 12


def normal_mean(y: Tensor, size: int = 4) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y), subsample_size=size):
        pyro.sample("y", dist.Normal(w, 1.0), obs=pyro.subsample(y, event_dim=0))


def test_the_errors_of_an_epoch_cancel() -> None:
    target = density((3, 23))
    source = RandomStream(target, CHAINS, 1, order="epoch")
    w = torch.randn(CHAINS, 2, generator=torch.Generator().manual_seed(41), dtype=torch.float64)
    estimate, exact = minibatch_estimator(target), exact_evaluation(target, w)
    found = [
        estimate(w, Batch(indices, (), target.tensors), None) for indices in index_sets(source, 4)
    ]
    for name in exact._fields:
        mean = torch.stack([getattr(one, name) for one in found]).mean(0)
        torch.testing.assert_close(mean, getattr(exact, name), rtol=1e-12, atol=1e-12)
    assert (found[0].gradient - exact.gradient).abs().min() > 1e-3


def epoch_variance(step_size: float, a: float, noise: float, per_epoch: int) -> float:
    """a·Var(w) of SGLD at T = 1 on a quadratic, the errors of an epoch of K steps adding to zero.

    Errors of variance s² then have covariances −s²/(K − 1). At the start of an epoch w knows
    nothing of the errors to come; the mean is over the K places in an epoch.
    """
    shrink = 1 - step_size * a / 2
    errors = noise * (per_epoch * np.eye(per_epoch) - 1) / (per_epoch - 1)
    added = []
    for k in range(per_epoch + 1):  # what k steps have added to w's variance
        response = shrink ** np.arange(k)[::-1]
        thermal = step_size * float((response**2).sum())
        added.append(thermal + step_size**2 / 4 * response @ errors[:k, :k] @ response)
    start = added[-1] / (1 - shrink ** (2 * per_epoch))
    places = [shrink ** (2 * k) * start + added[k] for k in range(per_epoch)]
    return a * float(np.mean(places))


@pytest.mark.thorough
def test_the_temperature_of_epochs_is_lower_and_known() -> None:
    y, step_size, a = torch.linspace(-3.0, 3.0, 40, dtype=torch.float64), 0.003, 40 + 0.01
    noise = 40**2 / 4 * float(y.var(correction=0))
    expected = {
        "replacement": (1 + step_size * noise / 4) / (1 - step_size * a / 4),
        "epoch": epoch_variance(step_size, a, noise * 36 / 39, 10),
    }
    assert expected["replacement"] > 1.9
    assert expected["epoch"] < 1.25
    orders: list[Literal["replacement", "epoch"]] = ["replacement", "epoch"]
    for order in orders:
        tree = fe.sample(
            fe.SGLD(normal_mean, step_size=step_size, minibatches=order),
            y,
            num_samples=500,
            warmup_steps=200,
            thinning=7,  # prime to the ten steps of an epoch: all of its places come in turn
            num_chains=100,
            compile="traced",
            progress_bar=False,
        )
        squares = a * (tree.posterior["w"].values - 40 / a * float(y.mean())) ** 2
        assert abs(z_score(squares.mean(), expected[order], mcse_of_mean(squares))) < 4
        assert mcse_of_mean(squares) < 0.03


@pytest.mark.parametrize("anchored", [False, True])
def test_micro_batches_give_the_estimate_on_the_joint_batch(anchored: bool) -> None:
    small, joint = density((2, 3), (24, 24)), density((8, 12), (24, 24))
    generator = torch.Generator().manual_seed(42)
    w = torch.randn(CHAINS, 2, generator=generator, dtype=torch.float64)
    indices = tuple(torch.randint(24, (CHAINS, size), generator=generator) for size in (8, 12))
    build = control_variate if anchored else minibatch_estimator
    anchor = Anchor(0.8 * w, *exact_evaluation(joint, 0.8 * w)) if anchored else None
    found = accumulated(build(small), 4)(w, Batch(indices, (), small.tensors), anchor)
    expected = build(joint)(w, Batch(indices, (), joint.tensors), anchor)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    # Sharp enough: a quarter of the joint batch gives something else.
    quarter = tuple(ix[:, : ix.shape[1] // 4] for ix in indices)
    part = build(small)(w, Batch(quarter, (), small.tensors), anchor)
    assert (part.gradient - expected.gradient).abs().min() > 1e-6


@pytest.mark.parametrize(
    ("order", "gradient"), [("replacement", "control_variate"), ("epoch", "minibatch")]
)
def test_a_run_by_micro_batches_is_that_of_the_joint_batch(
    order: Literal["replacement", "epoch"], gradient: Literal["minibatch", "control_variate"]
) -> None:
    y = torch.linspace(-3.0, 3.0, 40, dtype=torch.float64)

    def draws(size: int, micro_batches: int) -> np.ndarray:
        kernel = fe.SGLD(
            lambda y: normal_mean(y, size),
            step_size=0.01,
            gradient=gradient,
            minibatches=order,
            micro_batches=micro_batches,
        )
        tree = fe.sample(
            kernel, y, num_samples=15, warmup_steps=5, compile="eager", progress_bar=False
        )
        values: np.ndarray = tree.posterior["w"].values
        return values

    by_parts = draws(4, 3)
    np.testing.assert_allclose(by_parts, draws(12, 1), rtol=1e-5, atol=1e-6)
    if gradient == "minibatch":  # with control variates a normal mean has no noise to differ in
        assert np.abs(by_parts - draws(4, 1)).max() > 1e-3
