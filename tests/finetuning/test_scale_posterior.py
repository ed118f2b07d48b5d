"""Scales given their weights: tables in float32 against Bessel functions and quadrature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from exact import log_marginal_prior, scale_moment
from scipy.integrate import trapezoid
from scipy.special import ndtr
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_fe.finetuning.bayestune.scale_posterior import ScalePosterior, log_marginal_density

PRIORS = [(0.01, 100.0), (0.5, 3.0), (1.0, 1.0), (5.0, 50.0), (1e-3, 1e4), (2.0, 1e-2)]


def offsets(low: float, high: float, count: int = 5000) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(count, generator=generator, dtype=torch.float64)
    return torch.exp(math.log(low) + places * math.log(high / low)).float()


def largest_error(found: Tensor, exact: np.ndarray) -> float:
    return float(np.abs(found.double().numpy() / exact - 1).max())


@pytest.mark.parametrize(("alpha", "beta"), PRIORS)
def test_curves_against_bessel_functions(alpha: float, beta: float) -> None:
    scales = ScalePosterior(alpha, beta)
    delta = offsets(1e-37, 1e4)
    exact = delta.double().numpy()
    assert largest_error(scales.expected_scale(-delta), scale_moment(exact, alpha, beta)) < 1e-4
    square = scale_moment(exact, alpha, beta, order=2.0)
    assert largest_error(scales.expected_square(delta), square) < 1e-4
    signed = log_marginal_prior(exact, alpha, beta) - math.log(2)
    np.testing.assert_allclose(log_marginal_density(exact, alpha, beta), signed, rtol=1e-9)


@pytest.mark.parametrize("alpha", [17.3, 100.0])
def test_large_shapes_where_bessel_functions_overflow(alpha: float) -> None:
    beta = 10.0
    scales = ScalePosterior(alpha, beta)
    for delta in (1e-30, 1e-4, 0.5, 10.0):
        u = np.linspace(math.log(1e-4), math.log(200.0), 20_001)
        density = np.exp((alpha - 1) * u - beta * np.exp(u) - delta * np.exp(-u) - 60)
        mean = trapezoid(density * np.exp(u), u) / trapezoid(density, u)
        assert scales.expected_scale(torch.tensor(delta)).item() == pytest.approx(mean, rel=1e-4)


def test_no_offset_and_no_number() -> None:
    scales = ScalePosterior(0.01, 100.0)
    zero, smallest = torch.zeros(1), torch.full((1,), 2e-38)
    assert scales.expected_scale(zero) == scales.expected_scale(smallest) < 1e-35
    sharp = ScalePosterior(5.0, 50.0)  # Gamma(alpha − 1, beta) at no offset
    assert sharp.expected_scale(zero).item() == pytest.approx(4 / 50, rel=1e-4)
    nothing = torch.full((1,), math.nan)
    for found in (scales.expected_scale(nothing), scales.draw_scale(nothing, zero)):
        assert torch.isnan(found).all()


@pytest.mark.parametrize(("alpha", "beta"), PRIORS)
@pytest.mark.parametrize("delta", [1e-30, 1e-6, 3.3e-4, 0.05, 1.7, 60.0])
def test_drawn_scales_have_the_law_of_the_conditional(
    alpha: float, beta: float, delta: float
) -> None:
    # The draw is a quantile function: its distribution function is known without drawing.
    scales = ScalePosterior(alpha, beta)
    noise = torch.linspace(-4.5, 4.5, 4001)
    drawn = scales.draw_scale(torch.full_like(noise, -delta), noise).double().log().numpy()
    assert (np.diff(drawn) >= 0).all()
    room = 60 + 4 * math.sqrt(beta * delta)
    u = np.linspace(math.log(delta / room), math.log((room + 4 * alpha) / beta), 400_001)
    level = (alpha - 1) * u - beta * np.exp(u) - delta * np.exp(-u)
    density = np.exp(level - level.max())
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    found = np.interp(drawn, u, below / below[-1])
    exact = ndtr(noise.double().numpy())
    assert np.abs(found - exact).max() < 1e-3
    shares = np.abs(np.diff(found[::20]) - np.diff(exact[::20]))
    assert shares.sum() / 2 < 1.5e-3  # total variation over 200 cells


def test_mean_of_drawn_scales() -> None:
    scales = ScalePosterior(0.5, 20.0)
    noise = torch.randn(400_000, generator=torch.Generator().manual_seed(3))
    for delta in (1e-3, 0.02, 0.4):
        drawn = scales.draw_scale(torch.full_like(noise, delta), noise).double()
        error = drawn.std().item() / math.sqrt(len(noise))
        exact = float(scale_moment(delta, 0.5, 20.0))
        assert abs(drawn.mean().item() - exact) < 4.5 * error + 3e-4 * exact


def test_traced_and_in_double_precision() -> None:
    scales = ScalePosterior(0.3, 5.0)
    delta, noise = offsets(1e-20, 10.0, 50), torch.randn(50)

    def everything(delta: Tensor, noise: Tensor) -> Tensor:
        return scales.draw_scale(delta, noise) + scales.expected_scale(delta)

    traced = make_fx(everything)(torch.ones(50), torch.ones(50))
    torch.testing.assert_close(traced(delta, noise), everything(delta, noise))
    double = ScalePosterior(0.3, 5.0, dtype=torch.float64).expected_scale(delta.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), scales.expected_scale(delta), rtol=3e-5, atol=0.0)


def test_bad_priors_are_refused() -> None:
    for alpha in (0.0, -1.0, 101.0, math.nan):
        with pytest.raises(ValueError, match=r"alpha must lie in \[0.0001, 100\]"):
            ScalePosterior(alpha, 1.0)
    for beta in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="beta must be a positive rate"):
            ScalePosterior(0.5, beta)
