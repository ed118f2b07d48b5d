"""Running moments against the stored draws and ArviZ's split R-hat."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from arviz_stats.base import array_stats
from torch import Tensor

from ppl_fe.inference.record import running_moments as module
from ppl_fe.inference.record.batch_sums import plan_batches
from ppl_fe.inference.record.running_moments import RunningMoments
from ppl_fe.inference.record.split_statistics import MomentSummary, most_ess, split_r_hat

NAN = float("nan")


def running(draws: Tensor, num_samples: int | None = None) -> RunningMoments:
    """The moments after draws (C, S, D), of the `num_samples` planned."""
    num_chains, given, size = draws.shape
    planned = given if num_samples is None else num_samples
    moments = RunningMoments(num_chains, size, planned, dtype=draws.dtype, device="cpu")
    for position in draws.unbind(1):
        moments.add(position)
    return moments


def ar1(rho: float, num_chains: int, num_draws: int, size: int, seed: int = 0) -> Tensor:
    """Stationary chains (C, S, D) of variance 1 and autocorrelation rho^k."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_chains, num_draws, size)
    draws = torch.randn(shape, generator=generator, dtype=torch.float64)
    for k in range(1, num_draws):
        draws[:, k] = rho * draws[:, k - 1] + math.sqrt(1 - rho**2) * draws[:, k]
    return draws


def assorted(num_draws: int) -> Tensor:
    """Three chains (3, S, 8): mixed, slow, drifting, and chains that disagree."""
    slow = ar1(0.98, 3, num_draws, 2)
    drift = torch.linspace(0, 3, num_draws, dtype=torch.float64)[None, :, None]
    apart = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)[:, None, None]
    mixed = ar1(0.3, 3, num_draws, 2, seed=1)
    return torch.cat([mixed, slow, mixed + drift, mixed + apart], dim=2)


@pytest.mark.parametrize("num_draws", [4, 5, 101, 400])
@pytest.mark.parametrize(
    ("dtype", "offset", "tolerance"),
    [
        (torch.float64, 0.0, 1e-9),
        (torch.float64, 1000.0, 1e-9),
        (torch.float32, 0.0, 1e-3),
        (torch.float32, 100.0, 1e-3),
    ],
)
def test_r_hat_is_arviz_split(
    num_draws: int, dtype: torch.dtype, offset: float, tolerance: float
) -> None:
    draws = (assorted(num_draws) + offset).to(dtype)
    expected = array_stats.rhat(draws.double().numpy(), method="split", chain_axis=0, draw_axis=1)
    r_hat = running(draws).summary().r_hat
    np.testing.assert_allclose(r_hat.numpy(), expected, rtol=tolerance)
    np.testing.assert_allclose(split_r_hat(draws).numpy(), expected, rtol=1e-9)


def check_against_stored_draws(summary: MomentSummary, draws: Tensor, planned: int) -> None:
    """The definitions, term by term, from all draws so far (C, n, D)."""
    num_chains, num_draws, _ = draws.shape
    everything = draws.flatten(0, 1)
    torch.testing.assert_close(summary.mean, everything.mean(0))
    torch.testing.assert_close(summary.sd, everything.std(0))
    if num_draws < 4:
        assert summary.r_hat.isnan().all()
        assert summary.ess.isnan().all()
        return
    half = planned // 2
    halves = [draws[:, :half], draws[:, planned - half :]]
    groups = [chain for part in halves if part.shape[1] for chain in part]
    total, count = sum(map(len, groups)), len(groups)
    within = sum((group - group.mean(0)).square().sum(0) for group in groups) / (total - count)
    centre = torch.cat(groups).mean(0)
    spread = sum(len(group) * (group.mean(0) - centre).square() for group in groups)
    size = (total - sum(len(group) ** 2 for group in groups) / total) / (count - 1)
    expected = ((size - 1 + spread / (count - 1) / within) / size).sqrt()
    torch.testing.assert_close(summary.r_hat, expected)
    assert summary.is_split == (count == 2 * num_chains)

    cut = [draws[:, batch.start : batch.stop] for batch in plan_batches(planned)]
    kept = [batch.half is not None for batch in plan_batches(planned)]
    batches = [c for part, keep in zip(cut, kept, strict=True) if keep for c in part if len(c)]
    squares = sum(len(batch) * (batch.mean(0) - centre).square() for batch in batches)
    number = num_chains * num_draws
    ess = number * everything.var(0) * (len(batches) - 1) / squares
    bound = most_ess(everything.var(0), torch.as_tensor(spread), count, number)
    cap = number * math.log10(number)
    torch.testing.assert_close(summary.ess, ess.minimum(bound).clamp(max=cap))


@pytest.mark.parametrize("planned", [1, 2, 3, 4, 23, 24, 60])
def test_every_number_of_draws_of_an_interrupted_run(planned: int) -> None:
    draws = assorted(planned) + 5.0
    moments = running(draws[:, :0], planned)
    for done in range(1, planned + 1):
        moments.add(draws[:, done - 1])
        check_against_stored_draws(moments.summary(), draws[:, :done], planned)


@pytest.mark.parametrize("num_samples", [4, 5, 9, 30, 100, 1000, 1001, 12345])
def test_batches_tile_the_halves(num_samples: int) -> None:
    batches = plan_batches(num_samples)
    ends = [batch.stop for batch in batches]
    assert [batch.start for batch in batches] == [0, *ends[:-1]]
    assert ends[-1] == num_samples
    middle = [batch for batch in batches if batch.half is None]
    assert len(middle) == num_samples % 2
    for half in (0, 1):
        lengths = [batch.stop - batch.start for batch in batches if batch.half == half]
        assert sum(lengths) == num_samples // 2
        assert max(lengths) - min(lengths) <= 1
        assert max(lengths) <= 1.5 * math.sqrt(num_samples) + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_draws", [50, 51])
def test_coordinates_that_never_move(dtype: torch.dtype, num_draws: int) -> None:
    draws = torch.full((3, num_draws, 2), 0.1, dtype=dtype)
    draws[2, :, 1] = 0.7  # one chain elsewhere
    moments = running(draws[:, :0], num_draws)
    for done, position in enumerate(draws.unbind(1), 1):
        moments.add(position)
        summary = moments.summary()
        assert summary.mean[0] == draws[0, 0, 0]
        assert summary.sd[0] == 0
        assert torch.stack([summary.r_hat, summary.ess, summary.mcse])[:, 0].isnan().all()
        if done >= 4:
            assert summary.r_hat[1] == torch.inf
    assert summary.ess[1] < 20


def test_failed_chains_are_left_out() -> None:
    draws = assorted(51)
    good = [0, 2]
    expected = running(draws[good]).summary()
    draws[1, 20:] = NAN
    moments = running(draws)
    for value, other in zip(moments.summary(good), expected, strict=True):
        torch.testing.assert_close(value, other)
    assert moments.summary().mean.isnan().all()


def test_large_problems_are_worked_on_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = assorted(41)
    whole = running(draws).summary()
    monkeypatch.setattr(module, "BLOCK_COORDINATES", 5)
    for value, other in zip(running(draws).summary(), whole, strict=True):
        torch.testing.assert_close(value, other)


def test_memory_is_constant_and_positions_may_be_overwritten() -> None:
    draws = assorted(41)
    buffer = torch.empty_like(draws[:, 0])
    moments = RunningMoments(3, 8, 41, dtype=torch.float64, device="cpu")
    for position in draws.unbind(1):
        moments.add(buffer.copy_(position))
        held = sum(t.nbytes for name, t in moments.state().items() if name != "draws")
        assert held <= 6 * buffer.nbytes
    torch.testing.assert_close(moments.summary(), running(draws).summary(), rtol=0, atol=0)


@pytest.mark.parametrize("stop", [0, 3, 8, 20, 21, 30, 41])
def test_a_restored_run_goes_on_exactly(stop: int) -> None:
    draws = assorted(41).float()
    first = running(draws[:, :stop], 41)
    second = running(draws[:, :7] + 1.0, 41)  # what it held before is forgotten
    second.restore(first.state())
    for position in draws[:, stop:].unbind(1):
        second.add(position)
    assert first.num_draws == stop
    expected = running(draws).summary()
    torch.testing.assert_close(second.summary(), expected, rtol=0, atol=0, equal_nan=True)


def make(size: int = 3, samples: int = 4, dtype: torch.dtype = torch.float32) -> RunningMoments:
    return RunningMoments(2, size, samples, dtype=dtype, device="cpu")


def test_refusals() -> None:
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 2, 3 and 0"):
        make(samples=0)
    with pytest.raises(ValueError, match="dtype must be"):
        make(dtype=torch.float16)
    moments = make()
    with pytest.raises(ValueError, match="no draws yet"):
        moments.summary()
    with pytest.raises(ValueError, match=r"position must have shape \(2, 3\), got \(3,\)"):
        moments.add(torch.zeros(3))
    for _ in range(4):
        moments.add(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="num_samples=4 draws were already added"):
        moments.add(torch.zeros(2, 3))
    for chains in ([], [0, 0], [2], [-1]):
        with pytest.raises(ValueError, match="different numbers from 0 to 1"):
            moments.summary(chains)
    for other in (make(size=2), make(samples=5), make(dtype=torch.float64)):
        with pytest.raises(ValueError, match="state has"):
            moments.restore(other.state())


def test_split_r_hat_of_too_few_draws() -> None:
    assert split_r_hat(torch.randn(4, 3, 2)).isnan().all()
