"""Likelihoods against torch's losses and formulas written out."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from ppl_fe.models.likelihoods import (
    IGNORED_TOKEN,
    categorical,
    find_likelihood,
    next_token,
    normal,
)
from pyro import poutine
from torch import Tensor
from torch.nn.functional import cross_entropy

GENERATOR = torch.Generator().manual_seed(1)


def log_prob(
    likelihood: Callable[[Tensor, Tensor], object], output: Tensor, targets: Tensor
) -> Tensor:
    """(B,), as seen from a plate over the data."""

    def program() -> None:
        with pyro.plate("data", len(targets)):
            likelihood(output, targets)

    with pyro.validation_enabled(True):
        trace = poutine.trace(program).get_trace()
        trace.compute_log_prob()
    site = trace.nodes["y"]
    assert site["is_observed"]
    values: Tensor = site["log_prob"]
    assert values.shape == (len(targets),)
    return values


def test_categorical_is_the_cross_entropy() -> None:
    logits = 3 * torch.randn(6, 4, generator=GENERATOR)
    targets = torch.tensor([0, 3, 1, 1, 2, 0])
    expected = -cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(log_prob(categorical, logits, targets), expected)


@pytest.mark.parametrize(("output", "targets"), [((5,), (5,)), ((5, 1), (5,)), ((5, 1), (5, 1))])
def test_normal_of_one_number(output: tuple[int, ...], targets: tuple[int, ...]) -> None:
    mean, y = torch.randn(output, generator=GENERATOR), torch.randn(targets, generator=GENERATOR)
    expected = -0.5 * (y.flatten() - mean.flatten()) ** 2 - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(log_prob(normal, mean, y), expected)


@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 3)])
def test_normal_of_several_numbers_is_one_datum(shape: tuple[int, ...]) -> None:
    mean, y = torch.randn(2, *shape, generator=GENERATOR)
    each = -0.5 * (y - mean) ** 2 - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(log_prob(normal, mean, y), each.flatten(1).sum(1))


def test_next_token_shifts_by_one_and_leaves_padding_out() -> None:
    logits = torch.randn(3, 5, 7, generator=GENERATOR)
    tokens = torch.randint(7, (3, 5), generator=GENERATOR)
    tokens[1, 3:] = IGNORED_TOKEN
    tokens[2, 1:] = IGNORED_TOKEN
    expected = torch.stack(
        [
            -cross_entropy(logits[i, :-1], tokens[i, 1:], ignore_index=-100, reduction="sum")
            for i in range(3)
        ]
    )
    found = log_prob(next_token, logits, tokens)
    torch.testing.assert_close(found, expected)
    assert found[2] == 0.0
    changed = logits.clone()
    changed[:, -1] = 100.0  # predicts what comes after the end
    changed[1, 2:] = -5.0  # predicts padding
    torch.testing.assert_close(log_prob(next_token, changed, tokens), expected)
    changed[0, 0, 0] += 1.0
    assert not torch.isclose(log_prob(next_token, changed, tokens)[0], expected[0])


def test_likelihoods_by_name() -> None:
    assert find_likelihood("categorical") is categorical
    assert find_likelihood("normal") is normal
    assert find_likelihood("next_token") is next_token

    def own(output: Tensor, targets: Tensor) -> Tensor:
        value: Tensor = pyro.sample("y", dist.Poisson(output.exp()), obs=targets)
        return value

    assert find_likelihood(own) is own
    with pytest.raises(ValueError, match=r"one of .*'next_token', 'normal'.*'gauss'"):
        find_likelihood("gauss")
