"""Targets and likelihoods whose shapes broadcast into N × N terms are refused, everywhere alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import ppl_fe as fe

X = torch.randn(30, 2, generator=torch.Generator().manual_seed(1))
LABELS = (X[:, 0] > 0).long()


def classes() -> fe.FlatNetwork:
    return fe.FlatNetwork(nn.Linear(2, 2))


def line() -> fe.FlatNetwork:
    return fe.FlatNetwork(nn.Linear(2, 1))


def noisy(output: Tensor, targets: Tensor) -> Any:  # (B, 1) against (B,): B × B terms
    return pyro.sample("y", dist.Normal(output, 2.0), obs=targets)


def flat_against_column(output: Tensor, targets: Tensor) -> Any:
    return pyro.sample("y", dist.Normal(output[:, 0], 2.0), obs=targets[:, None])


def without_event(output: Tensor, targets: Tensor) -> Any:  # (B, 2) terms, where (B,) are wanted
    return pyro.sample("y", dist.Normal(output, 2.0), obs=targets)


CASES: dict[str, tuple[Callable[[], fe.FlatNetwork], Tensor, Any]] = {
    "labels in a column": (classes, LABELS[:, None], "categorical"),
    "a column of outputs": (line, X[:, 1], noisy),
    "a column of targets": (line, X[:, 1], flat_against_column),
    "no event": (classes, X, without_event),
}
CALLS: dict[str, Callable[..., Any]] = {
    "finetune": lambda n, data, like: fe.finetune(
        n, data, likelihood=like, method="full", progress_bar=False
    ),
    "select_parameters": lambda n, data, like: fe.select_parameters(
        n, data, likelihood=like, sparsity=0.4, progress_bar=False
    ),
    "a simple rule": lambda n, data, like: fe.select_parameters(
        n, data, likelihood=like, rule="gradient_squared", sparsity=0.4, progress_bar=False
    ),
    "estimate_free_energy": lambda n, data, like: fe.estimate_free_energy(
        n, data, likelihood=like, progress_bar=False
    ),
    "integrate_free_energy": lambda n, data, like: fe.integrate_free_energy(
        n, data, likelihood=like, num_rungs=4, progress_bar=False
    ),
    "rank_checkpoints": lambda n, data, like: fe.rank_checkpoints(
        [n.module.state_dict()], n.module, data, likelihood=like, progress_bar=False
    ),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("case", CASES)
def test_shapes_that_are_not_one_number_a_datum_are_refused(case: str, call: str) -> None:
    make, targets, likelihood = CASES[case]
    with pytest.raises(ValueError, match=r"(?i)shape"):
        CALLS[call](make(), (X, targets), likelihood)


def test_so_are_those_of_other_data() -> None:
    data, column = (X, LABELS), (X, LABELS[:, None])
    network = classes()
    with pytest.raises(ValueError, match=r"(?i)shape"):
        fe.finetune(network, data, validation=column, method="full", progress_bar=False)
    with pytest.raises(ValueError, match=r"(?i)shape"):
        fe.rank_checkpoints(
            [network.module.state_dict()],
            network.module,
            data,
            held_out=column,
            progress_bar=False,
        )


def test_a_program_without_plates_is_held_to_its_shapes_too() -> None:
    def model(y: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(X @ slope, 1.0), obs=y)

    column = X[:, :1]
    with pytest.raises(ValueError, match=r"\(30, 30\), more than its values, \(30, 1\)"):
        fe.sample(fe.BAOAB(model), column, progress_bar=False)
