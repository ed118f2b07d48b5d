"""Which of the strongest pulls are chance: shares and probabilities against closed forms."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor

from ppl_fe.finetuning.bayestune.chance import chance_among

D, K, R = 500, 20, 7


def noise_reaching(counts: list[int]) -> Tensor:
    """Noise (R, D), so many of whose entries are above one."""
    noise = torch.full((len(counts), D), 0.5)
    for vector, count in zip(noise, counts, strict=True):
        vector[:count] = 1.5
    return noise


PULL = torch.cat([torch.linspace(3, 1, K), torch.zeros(D - K)])


@pytest.mark.parametrize("count", [1, 6, 12, 13, 20, 30])
def test_the_probability_is_the_negative_binomial_law_s(count: int) -> None:
    chance = chance_among(PULL, noise_reaching([count] * R), K)
    exact = stats.nbinom.cdf(R * count, K, 1 / (R + 1))  # noise before the k-th pull
    assert chance.probability == pytest.approx(exact)
    assert chance.may_be_all is (count >= 13)
    expected = count / K * (D - K) / (D - count)
    assert chance.share == pytest.approx(min(1.0, expected))


def test_counts_that_scatter_weigh_less() -> None:
    even = chance_among(PULL, noise_reaching([8] * R), K)
    odd = chance_among(PULL, noise_reaching([0, 0, 0, 0, 0, 26, 30]), K)
    assert (even.share, even.may_be_all) == (odd.share, False)
    assert odd.probability > 0.2


def test_nothing_that_reaches_the_pulls_and_nothing_that_pulls() -> None:
    none = noise_reaching([0] * R)
    assert chance_among(PULL, none, 1) == (0.0, 0.0)
    assert chance_among(torch.zeros(D), none, K) == (1.0, 1.0)
    assert chance_among(PULL, none[:0], K) == (0.0, 0.0)
    assert chance_among(PULL + 1, none + 2, D) == (0.0, 0.0)  # no choice


@pytest.mark.parametrize(("count", "least"), [(1, 7 / 8), (2, 0.95), (20, 0.95), (100, 0.95)])
def test_noise_alone_is_noted_as_often_as_promised(count: int, least: float) -> None:
    generator = torch.Generator().manual_seed(0)
    noted = [
        chance_among(drawn[0], drawn[1:], count).noted
        for drawn in (torch.randn(R + 1, D, generator=generator).abs() for _ in range(400))
    ]
    assert sum(noted) / 400 >= least - 3 * (least * (1 - least) / 400) ** 0.5
