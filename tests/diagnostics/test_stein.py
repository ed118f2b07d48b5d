"""The kernel Stein discrepancy against closed forms; its test's level and power."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from exact import z_score
from numpy.typing import NDArray
from scipy.special import k0
from scipy.stats import kstest
from torch import Tensor

from ppl_fe.diagnostics import stein as stein_kernel
from ppl_fe.diagnostics.stein import autocorrelation_time, kernel_stein_discrepancy, stein_test

M = 50


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def autoregressive(generator: torch.Generator, *shape: int, rho: float) -> Tensor:
    """(C, S, D) of a stationary chain with standard normal draws, x' = ρx + √(1 − ρ²)ξ."""
    draws = normal(generator, *shape)
    for step in range(1, shape[1]):
        draws[:, step] = rho * draws[:, step - 1] + math.sqrt(1 - rho**2) * draws[:, step]
    return draws


def p_values(rho: float, repeats: int, **how: Any) -> NDArray[np.float64]:
    generator = torch.Generator().manual_seed(2)
    chains = [autoregressive(generator, 4, 40, 2, rho=rho) for _ in range(repeats)]
    return np.array([stein_test(x, -x, seed=n, **how).p_value for n, x in enumerate(chains)])


def test_the_kernel_is_what_autograd_makes_of_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    x, s = normal(generator, 6, 3), normal(generator, 6, 3)
    scale = 0.7

    def k(a: Tensor, b: Tensor) -> Tensor:
        return (scale**2 + (a - b).square().sum()).rsqrt()

    total = 0.0
    for a, s_a in zip(x, s, strict=True):
        for b, s_b in zip(x, s, strict=True):
            of_a = torch.func.grad(k, argnums=0)(a, b)
            of_b = torch.func.grad(k, argnums=1)(a, b)
            mixed = torch.func.jacrev(torch.func.grad(k, argnums=0), argnums=1)(a, b)
            h = s_a @ s_b * k(a, b) + s_a @ of_b + s_b @ of_a + mixed.trace()
            total += h.item()
    assert kernel_stein_discrepancy(x, s, scale=scale) == pytest.approx(total / 36, rel=1e-10)


@pytest.mark.parametrize("shift", [0.0, 0.5])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_its_mean_over_shifted_normal_draws_is_the_closed_form(shift: float, scale: float) -> None:
    # The score of N(0, 1) less that of N(m, 1) is −m, and E h(X, Y) = m² E k(X, Y) (Liu et al.,
    # theorem 3.6) with X − Y of N(0, 2): a Bessel function. The diagonal has (1 + m²)/c + 1/c³.
    pairs = shift**2 * math.exp(scale**2 / 8) * k0(scale**2 / 8) / math.sqrt(4 * math.pi)
    diagonal = (1 + shift**2) / scale + 1 / scale**3
    expected = (1 - 1 / M) * pairs + diagonal / M
    generator = torch.Generator().manual_seed(1)
    draws = [shift + normal(generator, M, 1) for _ in range(1000)]
    found = np.array([kernel_stein_discrepancy(x, -x, scale=scale) for x in draws])
    error = found.std(ddof=1) / math.sqrt(len(found))
    assert abs(z_score(found.mean(), expected, error)) < 4.5
    assert error < 0.05 * expected


def test_tiles_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    x, s = 1e3 + normal(generator, 4, 9, 5), normal(generator, 4, 9, 5)
    flat = (x.flatten(0, 1), s.flatten(0, 1))
    whole, tested = kernel_stein_discrepancy(*flat), stein_test(x, s)
    monkeypatch.setattr(stein_kernel, "TILE_ROWS", 7)
    assert kernel_stein_discrepancy(*flat) == pytest.approx(whole, rel=1e-9)
    assert stein_test(x, s).value == pytest.approx(tested.value, rel=1e-9)
    monkeypatch.setattr(stein_kernel, "TILE_ROWS", 512)
    monkeypatch.setattr(stein_kernel, "TILE_NUMBERS", 20)  # four rows of five coordinates
    assert kernel_stein_discrepancy(*flat) == pytest.approx(whole, rel=1e-9)


def test_the_statistic_is_the_discrepancy_in_standard_units() -> None:
    generator = torch.Generator().manual_seed(4)
    x = normal(generator, 4, 50, 3)
    found = stein_test(x, -x)
    flat = x.flatten(0, 1)
    spread = flat.std(0)
    expected = kernel_stein_discrepancy(flat / spread, -flat * spread)
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert found.num_draws == 200
    units = torch.tensor([1e-4, 1.0, 1e5], dtype=torch.float64)
    assert stein_test(x * units + units, -x / units).value == pytest.approx(expected, rel=1e-6)


def test_p_values_of_exact_draws_are_uniform() -> None:
    found = p_values(0.0, 200)
    assert kstest(found, "uniform").pvalue > 1e-6
    # Sharp enough: at twice the temperature all are gone.
    generator = torch.Generator().manual_seed(5)
    hot = [math.sqrt(2) * normal(generator, 4, 100, 2) for _ in range(20)]
    assert np.median([stein_test(x, -x).p_value for x in hot]) == 0.001
    assert max(stein_test(x, -x).p_value for x in hot) < 0.05


def test_correlated_draws_keep_the_level_under_the_wild_bootstrap_only() -> None:
    repeats = 200
    at_most = 0.05 + 4.5 * math.sqrt(0.05 * 0.95 / repeats)
    wild = p_values(0.6, repeats)
    assert (wild <= 0.05).mean() < at_most
    independent = p_values(0.6, repeats, flip_probability=0.5)
    assert (independent <= 0.05).mean() > 2 * at_most


def test_chains_are_independent_of_each_other_however_slow() -> None:
    # Fifty chains of four draws, all but equal: as good as fifty independent draws, whose signs
    # have nothing to do with each other.
    generator = torch.Generator().manual_seed(10)
    slow = [autoregressive(generator, 50, 4, 1, rho=0.98) for _ in range(50)]
    assert kstest([stein_test(x, -x).p_value for x in slow], "uniform").pvalue > 1e-6
    assert np.median([stein_test(2 * x, -2 * x).p_value for x in slow]) < 0.01


@pytest.mark.parametrize("chains", [1, 10])
def test_the_autocorrelation_time_is_that_of_the_slowest_coordinate(chains: int) -> None:
    generator = torch.Generator().manual_seed(6)
    slow = autoregressive(generator, chains, 40_000 // chains, 1, rho=0.8)
    draws = torch.cat([normal(generator, *slow.shape), slow], -1)
    # The error of Geyer's sum is about τ √(4 · window / N) with a window of a few τ.
    assert autocorrelation_time(draws) == pytest.approx(9.0, rel=0.2)
    assert autocorrelation_time(draws[..., :1]) == pytest.approx(1.0, rel=0.1)
    assert autocorrelation_time(draws[:, :-1]) == pytest.approx(9.0, rel=0.2)  # an odd number


def test_chains_that_disagree_count_as_slow() -> None:
    generator = torch.Generator().manual_seed(7)
    together = stein_test(x := normal(generator, 4, 50, 1), -x)
    apart = x + torch.tensor([-3.0, -3.0, 3.0, 3.0], dtype=torch.float64)[:, None, None]
    found = stein_test(apart, 3 * torch.tanh(3 * apart) - apart)
    assert together.flip_probability > 0.03  # τ < 4; independent draws look like 1 to 2
    assert found.flip_probability < 0.01


def test_a_missing_mode_is_not_seen() -> None:
    # Modes at ±10 and all draws at one of them, where the other adds nothing to the score.
    x = 10 + normal(torch.Generator().manual_seed(8), 4, 100, 1)
    assert stein_test(x, 10 * torch.tanh(10 * x) - x).p_value > 0.001


def test_bad_input_is_refused() -> None:
    x = normal(torch.Generator().manual_seed(9), 4, 10, 2)
    with pytest.raises(ValueError, match=r"must both be \(M, D\), got \(4, 10, 2\)"):
        kernel_stein_discrepancy(x, x)
    with pytest.raises(ValueError, match=r"must both be \(C, S, D\)"):
        stein_test(x, x[:, :5])
    with pytest.raises(ValueError, match="scores hold NaN"):
        stein_test(x, x / 0.0 * 0.0)
    with pytest.raises(ValueError, match="scale must be positive"):
        kernel_stein_discrepancy(x[0], x[0], scale=0.0)
    with pytest.raises(ValueError, match="at least 20 draws, got 16"):
        stein_test(x[:, :4], x[:, :4])
    with pytest.raises(ValueError, match="flip_probability must lie in"):
        stein_test(x, -x, flip_probability=0.6)
    with pytest.raises(ValueError, match="equal in coordinate 1"):
        stein_test(x * torch.tensor([1.0, 0.0]), x)
