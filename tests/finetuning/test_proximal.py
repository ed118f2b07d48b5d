"""One step of the proximal sampler: its draws against quadrature, its edges, its errors."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from exact import log_marginal_prior
from scipy.special import ndtr
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_fe.finetuning.bayestune import proximal_step as proximal
from ppl_fe.finetuning.bayestune.proximal_step import SPACING, Settings, draw_unit, prepare
from ppl_fe.finetuning.bayestune.scale_posterior import ScalePosterior

CASES = [  # alpha, beta, step_size
    (0.01, 100.0, 1e-3),
    (0.01, 100.0, 1e-8),
    (0.3, 20.0, 0.02),
    (1.0, 10.0, 0.1),
    (5.0, 50.0, 1e-3),
    (0.01, 100.0, 2.0),
]


@cache
def levels(alpha: float, beta: float, eta: float) -> tuple[np.ndarray, np.ndarray]:
    """A grid of |u|, fine near zero, and log m(√η u) there; the same for every mean."""
    u = np.concatenate([np.geomspace(1e-30, 1e-2, 40_001), np.arange(1, 200_001) * 5e-4 + 1e-2])
    return u, log_marginal_prior(u * math.sqrt(eta), alpha, beta)


def exact_distribution(
    alpha: float, beta: float, eta: float, mean: float, places: np.ndarray
) -> np.ndarray:
    """Distribution function at signed u of the density ∝ m(√η u) N(u; mean, 1), by trapezoids."""
    u, level = levels(alpha, beta, eta)
    top = max(float((level - 0.5 * (u - mean) ** 2).max()), float(level[0] - 0.5 * mean**2))
    sides = []
    for centre in (mean, -mean):
        density = np.exp(level - 0.5 * (u - centre) ** 2 - top)
        small = density * u  # below 1e-2 in log u, where m is a power
        cells = np.where(
            u[1:] <= 1e-2 + 1e-12,
            0.5 * (small[1:] + small[:-1]) * np.diff(np.log(u)),
            0.5 * (density[1:] + density[:-1]) * np.diff(u),
        )
        first = density[0] * u[0] / min(alpha, 1.0)
        sides.append(np.concatenate([[first], first + np.cumsum(cells)]))
    plus, minus = sides
    beyond = np.interp(np.log(np.abs(places)), np.log(u), plus)
    before = np.interp(np.log(np.abs(places)), np.log(u), minus)
    total = plus[-1] + minus[-1]
    found: np.ndarray = np.where(places > 0, minus[-1] + beyond, minus[-1] - before) / total
    return found


@cache
def tables(alpha: float, beta: float, step_size: float) -> Settings:
    return prepare(ScalePosterior(alpha, beta), step_size)


@pytest.mark.parametrize(("alpha", "beta", "step_size"), CASES)
@pytest.mark.parametrize(
    "mean",
    [
        *(0.0, 8.0, 61.5),
        *(pytest.param(m, marks=pytest.mark.thorough) for m in (1.5, 3.5, 4.5, 12.5, 20.0, 32.0)),
    ],
)
def test_draws_have_the_law_of_prior_times_normal(
    alpha: float, beta: float, step_size: float, mean: float
) -> None:
    settings = tables(alpha, beta, step_size)
    noise = torch.linspace(-5.5, 5.5, 20_001)
    drawn = draw_unit(torch.full_like(noise, mean), noise, settings).double().numpy()
    assert (np.diff(drawn) >= 0).all()
    kept = np.flatnonzero(np.abs(drawn) > 1e-25)  # what lies between counts as one cell
    found = exact_distribution(alpha, beta, step_size / 2, mean, drawn[kept])
    exact = ndtr(noise.double().numpy())[kept]
    limit = 1e-3 if beta * math.sqrt(step_size / 2) <= 10 else 3.4e-3
    assert np.abs(found - exact).max() < limit
    shares = np.abs(np.diff(found[::20]) - np.diff(exact[::20]))
    assert shares.sum() / 2 < 1.2 * limit  # total variation


def test_rounding_to_the_lattice_is_normal_noise() -> None:
    # The share of lattice point k given u, against the unit normal, up to the fourth moment.
    cells = np.arange(-60, 61) * SPACING
    sd = math.sqrt(1 - SPACING**2 / 12)
    for u in (0.0, 0.11, 0.25):
        shares = ndtr((cells + SPACING / 2 - u) / sd) - ndtr((cells - SPACING / 2 - u) / sd)
        for power, moment in enumerate((1.0, 0.0, 1.0, 0.0, 3.0 - SPACING**4 / 120)):
            assert np.sum(shares * (cells - u) ** power) == pytest.approx(moment, abs=1e-12)
    settings = prepare(ScalePosterior(), 1e-3)
    assert settings.noise_sd.item() == pytest.approx(sd)
    curved = prepare(ScalePosterior(), 1e-3, curvature=torch.tensor([0.0, 600.0]))
    assert curved.noise_sd.square().tolist() == pytest.approx([sd**2, sd**2 - 0.3])


def test_laws_at_opposite_means_are_mirror_images() -> None:
    settings = prepare(ScalePosterior(0.01, 100.0), 1e-3)
    mean, noise = torch.randn(2, 1000, generator=torch.Generator().manual_seed(1))
    mean = SPACING + 20 * mean.abs()
    mirrored = draw_unit(-mean, noise, settings)
    torch.testing.assert_close(mirrored, -draw_unit(mean, noise, settings))


def test_nothing_not_finite_is_swallowed() -> None:
    settings = prepare(ScalePosterior(0.01, 100.0), 1e-3)
    offset = torch.tensor([[0.0, math.nan, 1e30, 0.1]])
    gradient = torch.tensor([[math.inf, 0.0, 0.0, math.nan]])
    moved = proximal.step(offset, gradient, torch.zeros(2, 1, 4), settings)[0]
    assert torch.isfinite(moved).tolist() == [False, False, True, False]
    assert moved[2].item() == pytest.approx(1e30)


def test_traced_step_is_the_eager_step() -> None:
    settings = prepare(ScalePosterior(0.01, 100.0), 1e-3)

    def step(offset: torch.Tensor, gradient: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return proximal.step(offset, gradient, noise, settings)

    traced = make_fx(step)(torch.zeros(2, 50), torch.zeros(2, 50), torch.zeros(2, 2, 50))
    inputs = 0.1 * torch.randn(2, 50), 10 * torch.randn(2, 50), torch.randn(2, 2, 50)
    torch.testing.assert_close(traced(*inputs), step(*inputs), rtol=0.0, atol=0.0)


def test_bad_settings_are_refused() -> None:
    scales = ScalePosterior(0.01, 100.0)
    for step_size in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="step_size must be a positive number"):
            prepare(scales, step_size)
    with pytest.raises(ValueError, match=r"step_size=1e.* is too large for the prior"):
        prepare(scales, 1e16)
    for curvature in (-1.0, 2000.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"between 0 and 1.6/step_size = 1.6e\+03"):
            prepare(scales, 1e-3, curvature)
