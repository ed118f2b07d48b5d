"""Where the proximal sampler settles: closed forms and quadrature, at steps that are not small."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cases.selection import NUM_MOVED, SD, planted
from exact import laplace_gamma_posterior, log_marginal_prior, mcse_of_mean
from torch import Tensor

from ppl_fe.finetuning.bayestune import proximal_step as proximal
from ppl_fe.finetuning.bayestune.proximal_step import Settings, prepare
from ppl_fe.finetuning.bayestune.scale_posterior import ScalePosterior


def chains(
    scales: ScalePosterior,
    settings: Settings,
    start: Tensor,
    data: Tensor,
    sd: float,
    draws: int,
    thin: int,
) -> tuple[Tensor, Tensor]:
    """Observations data ~ N(offset, sd): offsets and drawn scales (C, draws, D)."""
    generator = torch.Generator().manual_seed(7)
    warmup, offset, offsets, drawn = 100, start, [], []
    for k in range(warmup + draws * thin):
        noise = torch.randn(3, *start.shape, generator=generator)
        offset = proximal.step(offset, (data - offset) / sd**2, noise[:2], settings)
        if k >= warmup and (k - warmup) % thin == thin - 1:
            offsets.append(offset)
            drawn.append(scales.draw_scale(offset, noise[2]))
    return torch.stack(offsets, 1), torch.stack(drawn, 1)


@pytest.mark.parametrize(
    ("alpha", "beta"),
    [
        (0.01, 100.0),
        pytest.param(0.5, 20.0, marks=pytest.mark.thorough),
        pytest.param(5.0, 50.0, marks=pytest.mark.thorough),
    ],
)
@pytest.mark.parametrize(("observed", "eta_a"), [(0.0, 0.0), (0.45, 0.1), (0.45, 0.7)])
def test_a_chain_that_starts_in_the_posterior_stays_there(
    alpha: float, beta: float, observed: float, eta_a: float
) -> None:
    # A million weights start at quantiles of m(Δ) N(observed; Δ, 0.1), at ηa = 0 of m(Δ) alone.
    a, count = (100.0 if eta_a else 0.0), 1_000_000
    u = np.linspace(math.log(1e-35), math.log(60.0), 400_001)
    delta = np.exp(u)
    level = log_marginal_prior(delta, alpha, beta) + u
    sides = [np.exp(level - 0.5 * a * (observed - side * delta) ** 2) for side in (-1.0, 1.0)]
    # Below the grid m is a power of Δ.
    minus, plus = (side[0] / min(alpha, 1.0) / (u[1] - u[0]) + np.cumsum(side) for side in sides)
    uniform = (np.arange(count) + 0.5) / count * (minus[-1] + plus[-1])
    left, right = (
        np.exp(np.interp(values, cumulated, u))
        for values, cumulated in ((minus[-1] - uniform, minus), (uniform - minus[-1], plus))
    )
    start = np.where(uniform < minus[-1], -left, right)
    position = torch.as_tensor(start, dtype=torch.float32)[None]

    generator = torch.Generator().manual_seed(5)
    settings = prepare(ScalePosterior(alpha, beta), 2 * eta_a / a if a else 0.05, a)
    for _ in range(20):
        noise = torch.randn(2, 1, count, generator=generator)
        position = proximal.step(position, a * (observed - position), noise, settings)
    moved = position[0].double().numpy()
    ends = np.unique(np.append(np.quantile(start, np.arange(1, 40) / 40), [-1e-6, 1e-6, 0.01]))
    ends = ends[np.abs(ends) > 1e-30]
    expected, found = (np.array([np.mean(x < end) for end in ends]) for x in (start, moved))
    error = np.sqrt(expected * (1 - expected) / count)
    # Beside chance, the tables' own error a step.
    assert (np.abs(found - expected) < 4.5 * error + 5e-4).all()
    assert np.abs(np.corrcoef(np.abs(start), np.abs(moved))[0, 1]) < 0.98  # it did move


@pytest.mark.parametrize("eta_a", [pytest.param(0.1, marks=pytest.mark.thorough), 0.7])
@pytest.mark.parametrize("relative_noise", [0.0, 0.4])
@pytest.mark.parametrize("made_up_for", [False, True])
def test_a_quadratic_likelihood_under_a_flat_prior(
    eta_a: float, relative_noise: float, made_up_for: bool
) -> None:
    # Far from the anchor the prior is flat, and without the correction this is SGLD.
    a, s2 = 400.0, relative_noise * 400.0
    eta = eta_a / a / (1 + relative_noise)
    settings = prepare(ScalePosterior(0.01, 1e-6), 2 * eta, a + s2 if made_up_for else 0.0)
    generator = torch.Generator().manual_seed(11)
    centre, shape = 64.0, (1, 200_000)  # a power of two keeps float32's rounding out of it
    offset = torch.full(shape, centre)
    for _ in range(math.ceil(8 / eta_a * (1 + relative_noise))):
        kick = math.sqrt(s2) * torch.randn(shape, generator=generator)
        gradient = a * (centre - offset) + kick
        noise = torch.randn(2, *shape, generator=generator)
        offset = proximal.step(offset, gradient, noise, settings)
    exact = 1 / a if made_up_for else (1 + eta * s2 / 2) / (a * (1 - eta * a / 2))
    squares = (offset - centre).double().square()
    error = squares.std().item() / math.sqrt(shape[1])
    assert abs(squares.mean().item() - exact) < 4.5 * error + 1e-3 * exact


@pytest.mark.parametrize("made_up_for", [False, True])
def test_posterior_scales_at_the_reference_values(made_up_for: bool) -> None:
    # Issue's figures: alpha 5, beta 50, sd 0.1; a fifth of the step without the correction.
    sd, data = 0.1, torch.tensor([0.0, 0.1, 0.2, 0.4, 0.8])
    ratio = 0.5 if made_up_for else 0.1
    scales = ScalePosterior(5.0, 50.0)
    settings = prepare(scales, 2 * ratio * sd**2, 1 / sd**2 if made_up_for else 0.0)
    start = data + 2 * sd * torch.randn(400, 5, generator=torch.Generator().manual_seed(1))
    offsets, drawn = chains(scales, settings, start, data, sd, draws=100, thin=5)
    expected = np.array([0.09170, 0.09459, 0.10368, 0.13187, 0.17204])
    for values in (scales.expected_scale(offsets), drawn):
        found = values.double().mean((0, 1)).numpy()
        assert np.abs(found / expected - 1).max() < (0.01 if made_up_for else 0.03)
        errors = [mcse_of_mean(values[..., k].double().numpy()) for k in range(5)]
        if made_up_for:  # exact: nothing but chance (and the figures' last digit) is allowed
            assert (np.abs(found - expected) < 4.5 * np.array(errors) + 1e-5).all()


@pytest.mark.thorough
def test_scales_of_the_few_weights_that_moved() -> None:
    """The paper's prior, 10³ weights of which 50 moved, among them some that half moved."""
    alpha, beta, sd, top = 0.01, 100.0, SD, NUM_MOVED
    generator = torch.Generator().manual_seed(2)
    data = planted(1000, generator)
    scales = ScalePosterior(alpha, beta)
    settings = prepare(scales, 2 * 0.7 * sd**2, 1 / sd**2)
    start = data + 2 * sd * torch.randn(16, 1000, generator=generator)
    offsets, drawn = chains(scales, settings, start, data, sd, draws=400, thin=4)

    exact = np.array(
        [laplace_gamma_posterior(y, sd, alpha, beta).scale_mean for y in data[:top].tolist()]
    )
    smooth = scales.expected_scale(offsets)
    for values in (smooth, drawn):  # collapsed, and joint
        moved = values[..., :top].double().numpy()
        errors = np.array([mcse_of_mean(moved[..., k]) for k in range(top)])
        assert (errors < 0.1 * exact).all()
        assert np.abs((moved.mean((0, 1)) - exact) / errors).max() < 4.5
        ranked = values.mean((0, 1)).argsort(descending=True)[:top]
        assert (ranked < top).float().mean() >= 0.95
    # Null weights: one mean over all of them, as each one's scale is too seldom large.
    nulls = np.array(
        [laplace_gamma_posterior(y, sd, alpha, beta).scale_mean for y in data[top:].tolist()]
    )
    each = smooth[..., top:].double().mean((0, 1)).numpy()
    error = each.std() / math.sqrt(len(each))
    assert abs(each.mean() - nulls.mean()) < 4.5 * error < 0.2 * nulls.mean()
