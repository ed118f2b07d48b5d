"""Normals from a counter: moments, law, independence, and the hash's published values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from ppl_fe.finetuning.bayestune.at_scale.counter_rng import (
    KEYS,
    _minus_twice_log,
    _on_circle,
    draw_keys,
    mixed,
    normals,
)
from ppl_fe.inference.step.compile import compile_graph, trace

SIZE, ROUNDS = 2**17, 8


def keys() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return draw_keys(torch.empty(ROUNDS, KEYS, dtype=torch.int32), generator)


@pytest.fixture(scope="module")
def drawn() -> Tensor:
    """(rounds, 2, size), float64."""
    return torch.stack([torch.stack(normals(key, SIZE)) for key in keys()]).double()


def reference(word: int) -> int:
    """triple32 in Python's integers."""
    word ^= word >> 17
    word = word * 0xED5AD4BB % 2**32
    word ^= word >> 11
    word = word * 0xAC4C1B51 % 2**32
    word ^= word >> 15
    word = word * 0x31848BAB % 2**32
    return word ^ word >> 14


def test_the_mixing_is_triple32() -> None:
    words = [0, 1, 2, 12345, 2**31 - 1, 2**31, 2**32 - 1]
    signed = torch.tensor(np.array(words, dtype=np.uint32).view(np.int32))
    found = mixed(signed).numpy().view(np.uint32).tolist()
    assert found == [reference(word) for word in words]


def test_a_bit_of_the_counter_or_of_a_key_changes_half_of_the_bits() -> None:
    key = keys()[0]
    counter = torch.arange(4096, dtype=torch.int32)
    base = mixed(counter * (2 * key[1] + 1) + key[0])
    for bit in range(12):
        other = mixed((counter ^ (1 << bit)) * (2 * key[1] + 1) + key[0])
        changed = np.unpackbits((base ^ other).numpy().view(np.uint8)).mean()
        assert abs(changed - 0.5) < 5 * 0.5 / (32 * 2048) ** 0.5


@pytest.mark.parametrize(("power", "expected"), [(1, 0), (2, 1), (3, 0), (4, 3), (6, 15), (8, 105)])
def test_moments(drawn: Tensor, power: int, expected: int) -> None:
    values = drawn**power
    error = values.std() / values.numel() ** 0.5
    assert abs(values.mean() - expected) < 4.5 * error


def test_the_law_is_normal(drawn: Tensor) -> None:
    assert stats.kstest(drawn.flatten().numpy(), "norm").pvalue > 1e-6
    tails = (drawn.abs() > 4).double()
    share = 2 * stats.norm.sf(4)
    assert abs(tails.mean() - share) < 4.5 * (share / drawn.numel()) ** 0.5


@pytest.mark.parametrize("lag", [1, 2, 3, 16, 64, 1000, 2**16])
def test_neighbours_are_independent(drawn: Tensor, lag: int) -> None:
    for values in (drawn, drawn.square() - 1, (drawn.abs() > 2).double() - 2 * stats.norm.sf(2)):
        for other in (values, values.flip(1)):  # the pair's other half, too
            product = values[..., lag:] * other[..., :-lag]
            assert abs(product.mean()) < 4.8 * product.std() / product.numel() ** 0.5


def test_keys_and_pairs_are_independent(drawn: Tensor) -> None:
    for values in (drawn, drawn.square() - 1):
        across = values[1:] * values[:-1]
        pair = values[:, 0] * values[:, 1]
        for product in (across, pair):
            assert abs(product.mean()) < 4.5 * product.std() / product.numel() ** 0.5


def test_near_keys_are_independent() -> None:
    key = keys()[0]
    one = normals(key, SIZE)[0]
    for place in range(KEYS):
        near = key.clone()
        near[place] += 1
        for other in normals(near, SIZE)[place == KEYS - 1 :]:
            # A first word shared, as with the last key, shares the radius and not the angle.
            assert abs((one * other).mean()) < 4.8 / SIZE**0.5 * 2


def test_pairs_lie_on_the_circle_at_an_even_angle() -> None:
    turn = torch.linspace(-1, 1, 100_001)
    exact = torch.pi * turn.double()
    for found, expected in zip(_on_circle(turn), (exact.cos(), exact.sin()), strict=True):
        assert (found.double() - expected).abs().max() < 1e-6


def test_radii_are_those_of_even_numbers() -> None:
    least, most = 2.0**-25, 1 - 2.0**-24
    even = torch.cat([torch.linspace(least, most, 100_001), torch.logspace(-24, 0, 1001, base=2)])
    exact = -2 * even.double().log()
    found = _minus_twice_log(even)
    assert (found >= 0).all()
    torch.testing.assert_close(found.double(), exact, rtol=5e-7, atol=0.0)


@pytest.mark.thorough
def test_compiled_they_are_the_same() -> None:
    key = keys()[0]

    def both(key: Tensor) -> list[Tensor]:
        return [*normals(key, 1000)]

    graph = trace(both, [key])
    torch.testing.assert_close(compile_graph(graph, [key])(key), both(key), rtol=1e-5, atol=1e-5)
