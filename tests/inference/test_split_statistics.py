"""The effective sample size by batch means against AR(1) chains in closed form and ArviZ."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from arviz_stats.base import array_stats

from ppl_fe.inference.record import split_statistics
from ppl_fe.inference.record.batch_sums import plan_batches
from ppl_fe.inference.record.split_statistics import batch_means_ess, most_ess

from .test_moments import ar1, running


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.5, 0.9])
def test_ess_of_ar1_chains_has_its_closed_form(rho: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The expected batch-means variance from the chains' covariance matrix, and from the docs."""
    monkeypatch.setattr(split_statistics, "FALSE_ALARM", 1e-300)  # batch means alone
    num_chains, num_draws, size = 4, 1000, 500
    summary = running(ar1(rho, num_chains, num_draws, size)).summary()
    number = num_chains * num_draws
    estimates = (number * summary.sd.square() / summary.ess).numpy()  # the variance times N

    lags = np.arange(num_draws)
    covariance = rho ** np.abs(lags[:, None] - lags)
    cuts = [slice(batch.start, batch.stop) for batch in plan_batches(num_draws)]
    about_zero = sum(covariance[cut, cut].mean() * (cut.stop - cut.start) for cut in cuts)
    centre = covariance.mean() * num_draws
    expected = (num_chains * about_zero - centre) / (num_chains * len(cuts) - 1)
    error = estimates.std(ddof=1) / math.sqrt(size)
    assert abs(estimates.mean() - expected) < 4 * error

    stated = (1 + rho) / (1 - rho) * (1 - 2 * rho / ((1 - rho**2) * math.sqrt(num_draws)))
    assert expected == pytest.approx(stated, rel=0.02)


def test_ess_agrees_with_arviz_within_noise() -> None:
    draws = ar1(0.5, 4, 1000, 200)
    expected = array_stats.ess(draws.numpy(), method="mean", chain_axis=0, draw_axis=1)
    ratio = running(draws).summary().ess.numpy() / expected
    # Batch means of 128 batches vary by 12 %, ArviZ's estimate by about as much.
    assert np.exp(np.log(ratio).mean()) == pytest.approx(1.04, abs=0.06)
    assert np.quantile(np.abs(np.log(ratio)), 0.95) < 0.5


def test_mcse_is_the_error_of_the_mean() -> None:
    summary = running(ar1(0.5, 4, 1000, 2000, seed=3)).summary()
    squared_z = (summary.mean / summary.mcse).square()
    # 4 % for short batches, 1.6 % for a t distribution of 127 degrees of freedom.
    error = squared_z.std() / math.sqrt(2000)
    assert abs(squared_z.mean() - 1.056) < 4 * error


def test_halves_that_lie_apart_bound_the_ess() -> None:
    """Chains that never meet: by batch means alone their ESS would be the number of batches."""
    apart = torch.arange(4.0, dtype=torch.float64)[:, None, None] * 100
    draws = ar1(0.0, 4, 2500, 3) + apart
    ess = running(draws).summary().ess
    assert len(plan_batches(2500)) * 4 >= 200
    assert (ess < 25).all()
    assert (ess > 4).all()


def test_the_bound_seldom_holds_a_mixed_coordinate_back() -> None:
    number, size = 800, 20_000
    draws = ar1(0.0, 4, 200, size, seed=5)
    halves = torch.cat([draws[:, :100], draws[:, 100:]]).mean(1)
    squares = 100 * (halves - halves.mean(0)).square().sum(0)
    held = (most_ess(draws.flatten(0, 1).var(0), squares, 8, number) < number).double().mean()
    assert abs(held - 0.01) < 4 * math.sqrt(0.01 * 0.99 / size)


def test_antithetic_draws_are_capped_as_by_arviz() -> None:
    signs = torch.tensor([1.0, -1.0]).repeat(500)[None, :, None].repeat(4, 1, 1).double()
    assert running(signs).summary().ess.item() == pytest.approx(4000 * math.log10(4000))


def test_one_batch_has_no_effective_size() -> None:
    assert batch_means_ess(torch.ones(3), torch.zeros(3), 1, 10).isnan().all()
