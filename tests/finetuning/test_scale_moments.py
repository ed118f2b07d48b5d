"""Moments of the scales: gone on with bit for bit, whatever they keep; and too few draws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ppl_fe.finetuning.bayestune.scale_moments import ScaleMoments

CHAINS, DRAWS, SIZE = 2, 12, 3
VALUES = torch.randn(CHAINS * DRAWS, SIZE, generator=torch.Generator().manual_seed(3)).double()
WHOLE = slice(0, SIZE)


def moments(num_samples: int = DRAWS, **kept: bool) -> ScaleMoments:
    errors, sequences = kept.get("errors", True), kept.get("sequences", False)
    return ScaleMoments(SIZE, CHAINS, num_samples, VALUES[:0], errors=errors, sequences=sequences)


def add(to: ScaleMoments, values: Tensor, *, extra: bool) -> None:
    for value in values:
        to.add(WHOLE, value, value.square() if extra else None)
        to.next()


@pytest.mark.parametrize("kept", [{}, {"sequences": True}, {"errors": False}], ids=str)
@pytest.mark.parametrize("extra", [True, False])
def test_moments_gone_on_with_are_those_of_one_run(kept: dict[str, bool], extra: bool) -> None:
    whole, first, second = (moments(**kept) for _ in range(3))
    add(whole, VALUES, extra=extra)
    add(first, VALUES[:17], extra=extra)
    second.restore({name: value.clone() for name, value in first.state().items()})
    torch.testing.assert_close(second.so_far(), VALUES[:17].mean(0))
    again = moments(**kept)  # what is so far changes the sums
    again.restore({name: value.clone() for name, value in first.state().items()})
    add(again, VALUES[17:], extra=extra)
    for one, other in zip(again.summary(), whole.summary(), strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert torch.equal(one, other)
    mean, sd, *_ = whole.summary()
    torch.testing.assert_close(mean, VALUES.mean(0))
    variance = VALUES.var(0) + extra * VALUES.square().mean(0)
    torch.testing.assert_close(sd, variance.sqrt(), rtol=0.03, atol=0.0)


def test_three_draws_a_chain_have_a_mean_and_an_sd_alone() -> None:
    few = moments(num_samples=3)
    add(few, VALUES[:6], extra=False)
    mean, sd, r_hat, mcse = few.summary()
    torch.testing.assert_close(mean, VALUES[:6].mean(0))
    torch.testing.assert_close(sd, VALUES[:6].std(0))
    assert r_hat is not None
    assert mcse is not None
    assert bool(r_hat.isnan().all() and mcse.isnan().all())
