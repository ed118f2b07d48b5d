"""What a stream of noise and index sets gives, step by step, and that it can be gone on with."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_fe.inference.program.density import Indices
from ppl_fe.inference.step.random_stream import RandomStream


def steps(source: RandomStream, count: int) -> list[tuple[Tensor, Indices]]:
    """Copies: a stream's own tensors are overwritten by its next block."""
    taken = (source.next() for _ in range(count))
    return [(noise.clone(), tuple(ix.clone() for ix in sets)) for noise, sets in taken]


def assert_equal(one: list[tuple[Tensor, Indices]], other: list[tuple[Tensor, Indices]]) -> None:
    for (noise, sets), (other_noise, other_sets) in zip(one, other, strict=True):
        assert torch.equal(noise, other_noise)
        assert all(map(torch.equal, sets, other_sets))


def assert_goes_on_exactly(
    source: RandomStream, elsewhere: RandomStream, taken: int, evaluations: int
) -> None:
    """After so many steps and looks the state of one stream sets another, and itself, there."""
    assert source.block_steps == 64
    steps(source, taken)
    for _ in range(evaluations):
        source.indices()
    state = source.state()
    expected = steps(source, 150)
    steps(elsewhere, 17)
    for restored in (elsewhere, source):
        restored.restore(state)
        assert_equal(steps(restored, 150), expected)
