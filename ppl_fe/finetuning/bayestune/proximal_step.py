"""Langevin dynamics with the Laplace/Gamma prior drawn exactly: a proximal sampler.

The scale integrated out, the prior m of an offset Δ = w − anchor is closed (`scale_posterior`), but
at α ≤ 1 it has a pole |Δ|^{α−1} at 0: no gradient there is of use, at α = 0.01 half a null weight's
mass lies below 1e-38, and joint SGLD over (w, log λ) misses the scales of null weights by factors
of two to six, as one step cannot serve 1e-3 and 1 at once; Gibbs over (w, λ) sticks, as a small λ
holds its weight and a small weight its λ. Here the data's term alone is a gradient. With η = ε/2,

    y  = Δ + η ĝ(w) + √η ξ,                       ξ ~ N(0, I), ĝ of the log-likelihood
    Δ' ~ density ∝ m(Δ') N(Δ'; y, η I)            exact, coordinate by coordinate
    λ' ~ p(λ | Δ')                                exact (`joint_step` only; nothing depends on it)

which is the proximal sampler of Lee, Shen & Tian (2021), a Gibbs sampler of (Δ, y), with the data's
term linearised as in forward–backward methods (Pereyra 2016; Durmus, Moulines & Pereyra 2018) but
nothing smoothed. For a log-likelihood linear in w the law m(Δ) p(D|w) is kept exactly at every η,
however rough m is. Where −log p(D|w) has curvature a, ĝ has variance s² and m is flat, it is SGLD:
the stationary variance is (1 + ηs²/2) / (a(1 − ηa/2)), stable iff ηa < 2. Both biases go if y gets
noise of variance σ²η with σ² = 1 − η(a + s²) instead: then p(y | Δ) p(Δ | D) ∝ m(Δ) N(Δ; y, η) f(y)
again, so a quadratic −log p(D|w) with normal gradient noise has its posterior exactly at every
η(a + s²) < 1 and for any m, and at a large ηa a weight changes sides between spike and slab within
a few steps, where small ones would never cross the valley. `prepare` takes a + s².

The draw. In units of √η the law of u = Δ'/√η depends on the mean v = y/√η and on β√η. Take y not
from N(·, σ²η) but from N(·, (σ² − h²/12)η), rounded to a lattice of spacing h√η: rounding adds
h²/12, and what comes out differs from the normal by its fourth cumulant alone, −h⁴/120 (4e-5 in
total variation at h = ½, σ = 1). So v has but a few values, each with its table of quantiles of u
in the score of a second standard normal (`proximal_tables`), and no interpolation in v blurs the
spike into the slab. Read linearly, a table is right to 1e-3 in total variation for β√η up to 10, to
4e-3 at 100.

Offsets are stored, not weights, so a null weight may lie at 1e-30 √η, and below that at exactly 0
(`unstretch`). The temperature is 1: temper the likelihood instead.

Papers: Structured logconcave sampling with a restricted Gaussian oracle, COLT 2021; Proximal
Markov chain Monte Carlo algorithms, Stat. Comput. 2016; Efficient Bayesian computation by proximal
Markov chain Monte Carlo, SIAM J. Imaging Sci. 2018.
"""

from __future__ import annotations

from math import ceil, isfinite, sqrt
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_fe.finetuning.bayestune.quantile_tables import (
    COLUMNS,
    far_cells,
    far_quantiles,
    far_row,
    lattice_edge,
    near_quantiles,
    unstretch,
)
from ppl_fe.finetuning.bayestune.scale_posterior import ScalePosterior, grid_place

SPACING = 0.5  # h, of the lattice of means
MOST_CURVED = 0.8  # of η(a + s²): what noise is left must still blur the lattice


class State(NamedTuple):
    """position (C, D): offsets from the anchor."""

    position: Tensor


class JointState(NamedTuple):
    """position (C, D): offsets from the anchor; scale (C, D): λ, drawn given them."""

    position: Tensor
    scale: Tensor


class Settings(NamedTuple):
    """What a step needs beside state, gradient and noise; made by `prepare`.

    step_size: ε = 2η. scales: α, β and their tables. forward_noise: sd of
    y's noise over √η, () or (D,). power: p. edge: cells of the lattice.
    quantiles: (edge + 1 + FAR_ROWS, COLUMNS), of ±r(|u|) near the anchor (`stretch`), of u − v far
    from it.
    """

    step_size: float
    scales: ScalePosterior
    forward_noise: Tensor
    power: int
    edge: int
    quantiles: Tensor


class Place(NamedTuple):
    """cell: v/h, whole numbers. corner: int32, where the flat table holds the quantile at or below
    the score. along: how much of the way it is to the next."""

    cell: Tensor
    corner: Tensor
    along: Tensor


def prepare(scales: ScalePosterior, step_size: float, curvature: Tensor | float = 0.0) -> Settings:
    """Tabulate the one-dimensional draws for a prior and a step size ε; a quarter of a second.

    Args:
        scales: the prior, its dtype and device.
        step_size: ε = 2η, in weight².
        curvature: (D,) or one for all: a + s² of the log-likelihood along each weight, its
            curvature and the variance of its gradient's estimate, to be made up for in the noise.
            0 by default: nothing is known, and the bias is SGLD's.

    Raises:
        ValueError: a step size that is not positive, or so large that β√η exceeds about 3e6 or
            η(a + s²) exceeds 0.8; a curvature that is negative or not finite.

    Example:
        >>> settings = prepare(ScalePosterior(alpha=0.01, beta=100.0), step_size=1e-4)
        >>> state = init(torch.zeros(2, 3), settings)      # two chains, three weights
        >>> step(state, torch.zeros(2, 3), torch.randn(2, 2, 3), settings).position.shape
        torch.Size([2, 3])
    """
    if not (isfinite(step_size) and step_size > 0):
        raise ValueError(f"step_size must be a positive number, got {step_size}")
    lost = 0.5 * step_size * torch.as_tensor(curvature, dtype=scales.dtype, device=scales.device)
    if not (lost >= 0).all() or lost.max() > MOST_CURVED:
        raise ValueError(
            f"curvature must lie between 0 and {2 * MOST_CURVED:g}/step_size = "
            f"{2 * MOST_CURVED / step_size:.3g}, got {float(lost.min()) * 2 / step_size:.3g} to "
            f"{float(lost.max()) * 2 / step_size:.3g}; lower step_size"
        )
    alpha, rate = scales.alpha, scales.beta * sqrt(step_size / 2)
    power = ceil(1 / alpha)
    edge = lattice_edge(alpha, rate)
    if edge is None:
        raise ValueError(
            f"step_size={step_size} is too large for the prior: steps of √(ε/2) are {rate:.1e} "
            "times 1/beta; lower step_size or beta"
        )
    cells = ceil(edge / SPACING)
    near = near_quantiles(alpha, rate, power, SPACING * np.arange(cells + 1.0))
    far = [far_quantiles(alpha, rate, SPACING * cell) for cell in far_cells(cells)]
    table = torch.as_tensor(np.stack([*near, *far]), dtype=scales.dtype)
    forward_noise = (1 - lost - SPACING**2 / 12).sqrt()
    return Settings(step_size, scales, forward_noise, power, cells, table.to(scales.device))


def init(offset: Tensor, settings: Settings) -> State:
    """A state at the given offsets from the anchor (C, D)."""
    return State(offset)


def joint_init(offset: Tensor, noise: Tensor, settings: Settings) -> JointState:
    """A state at the given offsets (C, D), with scales drawn by standard normal noise (C, D)."""
    return JointState(offset, settings.scales.draw_scale(offset, noise))


def step(state: State, gradient: Tensor, noise: Tensor, settings: Settings) -> State:
    """Δ -> Δ'. gradient (C, D) of the log-likelihood; noise (2, C, D) standard normal."""
    return State(_move(state.position, gradient, noise, settings))


def joint_step(
    state: JointState, gradient: Tensor, noise: Tensor, settings: Settings
) -> JointState:
    """(Δ, λ) -> (Δ', λ'). As `step`, with noise (3, C, D); Δ' is the one that `step` gives."""
    position = _move(state.position, gradient, noise, settings)
    return JointState(position, settings.scales.draw_scale(position, noise[2]))


def _move(offset: Tensor, gradient: Tensor, noise: Tensor, settings: Settings) -> Tensor:
    unit = sqrt(0.5 * settings.step_size)
    mean = forward(offset, gradient, noise[0], unit, settings.forward_noise)
    return unit * draw_unit(mean, noise[1], settings)


def forward(
    offset: Tensor,
    gradient: Tensor,
    noise: Tensor,
    unit: Tensor | float,
    forward_noise: Tensor,
) -> Tensor:
    """y/√η = Δ/√η + √η ĝ + σ ξ, of a standard normal ξ; unit is √η, forward_noise σ."""
    return offset * (1 / unit) + unit * gradient + forward_noise * noise


def draw_unit(mean: Tensor, noise: Tensor, settings: Settings) -> Tensor:
    """u ~ density ∝ m(√η u) N(u; v, 1), v the mean rounded to the lattice; any shape."""
    return read(place(mean, noise, settings), settings)


def place(mean: Tensor, noise: Tensor, settings: Settings) -> Place:
    """Where the tables hold u, of a mean and a standard normal score."""
    cell = (mean * (1 / SPACING)).round()
    size = cell.abs()  # laws at v and −v are mirror images
    edge = settings.edge
    # What is not finite reads the last row, and stays so.
    row = torch.where(size <= edge, size, far_row(size, edge) + (edge + 1.0))
    column, along = grid_place(noise, COLUMNS)
    return Place(cell, row.to(torch.int32) * COLUMNS + column, along)


def read(place: Place, settings: Settings) -> Tensor:
    """u, from the tables."""
    flat, size = settings.quantiles.flatten(), place.cell.abs()
    quantile = torch.lerp(flat[place.corner], flat[place.corner + 1], place.along)
    unstretched = torch.copysign(unstretch(quantile.abs(), settings.power), quantile)
    drawn = torch.where(size <= settings.edge, unstretched, size * SPACING + quantile)
    return torch.where(place.cell < 0, -drawn, drawn)
