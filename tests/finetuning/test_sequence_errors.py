"""Errors stated from sequences of draws, against those that many runs have."""

from __future__ import annotations

import math

import pytest
import torch

from ppl_fe.finetuning.bayestune.scale_moments import ScaleMoments
from ppl_fe.finetuning.bayestune.sequence_errors import sequence_mcse

NUM_GROUPS, CHAINS, DRAWS = 4000, 2, 100


def sides(stay: float) -> torch.Tensor:
    """(C, S, G) groups that are in the slab half the time, and keep their side for 1/(1 − stay)."""
    generator = torch.Generator().manual_seed(0)
    size = (CHAINS, DRAWS, NUM_GROUPS)
    first = torch.randint(2, (CHAINS, 1, NUM_GROUPS), generator=generator)
    change = (torch.rand(size, generator=generator) > stay).long()
    change[:, :1] = first
    slab = (change.cumsum(1) % 2).double()
    return 0.1 * slab * (1 + 0.2 * torch.randn(size, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("stay", [0.5, 0.8, 0.9, 0.96])
def test_half_moved_groups_state_the_errors_that_they_have(stay: float) -> None:
    draws = sides(stay)
    error = draws.mean((0, 1)) - 0.05
    stated = sequence_mcse(draws)
    assert 0.75 < (error.square().mean() / stated.square().mean()).sqrt() < 1.3
    z = error / stated
    if stay < 0.95:  # beyond it some groups hardly change within the run
        assert 0.75 < z.square().mean().sqrt() < 1.3
    assert (z.abs() < 2).double().mean() > 0.85
    # Known for a side that changes with probability q a draw: (1 − q)/q times that of independent
    # draws, less what it takes the run to settle.
    q = 1 - stay
    exact = 0.05 * math.sqrt((1 - q) / q / (CHAINS * DRAWS))
    assert error.square().mean().sqrt() == pytest.approx(exact, rel=0.25)


def test_moments_state_them_where_they_keep_the_draws() -> None:
    draws = sides(0.96)[..., :200]
    kept, summed = (
        ScaleMoments(200, CHAINS, DRAWS, draws, errors=True, sequences=sequences)
        for sequences in (True, False)
    )
    for draw in draws.reshape(-1, 200):
        for moments in (kept, summed):
            moments.add(slice(0, 200), draw)
            moments.next()
    mean, sd, r_hat, mcse = kept.summary()
    assert mcse is not None
    assert r_hat is not None
    others = summed.summary()
    for value, other in zip((mean, sd, r_hat), others[:3], strict=True):
        assert other is not None
        assert torch.equal(value, other)
    assert (mcse >= sequence_mcse(draws)).all()
    assert others[3] is not None
    assert mcse.square().mean() > 1.5 * others[3].square().mean()


def test_what_never_moves_has_no_error() -> None:
    assert sequence_mcse(torch.ones(2, 10, 3)).isnan().all()
