"""Equation (2) of `bayestune`: a Langevin step in which the prior is drawn exactly.

At α ≤ 1 the prior m of an offset has a pole |Δ|^{α−1} at 0: no gradient there is of use. At α =
0.01 half a null weight's mass lies below 1e-38, and joint SGLD over (w, log λ) misses the scales of
null weights by factors of two to six, as one step cannot serve 1e-3 and 1 at once; Gibbs over
(w, λ) sticks, as a small λ holds its weight and a small weight its λ. In (2) the data's term alone
is a gradient.

It is the proximal sampler of Lee, Shen & Tian (2021), a Gibbs sampler of (Δ, y), with the data's
term linearised as in forward–backward methods (Pereyra 2016; Durmus, Moulines & Pereyra 2018) but
nothing smoothed. For a log-likelihood linear in w the law m(Δ) p(data | w) is kept exactly at every
η, however rough m is. Where −log p(data | w) has curvature a, ĝ has variance s² and m is flat, it
is, at σ = 1, SGLD: the stationary variance is (1 + ηs²/2) / (a(1 − ηa/2)), stable iff ηa < 2. Both
biases go with σ² = 1 − η(a + s²): then p(y | Δ) p(Δ | data) ∝ m(Δ) N(Δ; y, η) f(y) again, so a
quadratic −log p(data | w) with normal gradient noise has its posterior exactly at every
η(a + s²) < 1 and for any m, and at a large ηa a weight changes sides between spike and slab within
a few steps, where small ones would never cross the valley. `prepare` takes a + s².

The draw of Δ'. In units of √η the law of u = Δ'/√η depends on the view v = y/√η and on β√η. Take v
not from a normal of variance σ² but from one of σ² − h²/12, rounded to a lattice of spacing h:
rounding adds h²/12, and what comes out differs from the normal by its fourth cumulant alone,
−h⁴/120 (4e-5 in total variation at h = ½, σ = 1). So v has but a few values, each with its table of
quantiles of u in the score of a second standard normal (`quantile_tables`), and no interpolation in
v blurs the spike into the slab. Read linearly, a table is right to 1e-3 in total variation for β√η
up to 10, to 4e-3 at 100.

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
from ppl_fe.finetuning.bayestune.scale_posterior import ScalePosterior, score_column

SPACING = 0.5  # h, of the lattice of views
MOST_CURVED = 0.8  # of η(a + s²): what noise is left must still blur the lattice


class Settings(NamedTuple):
    """What a step needs beside offsets, gradient and noise; made by `prepare`.

    step_size: ε = 2η.
    noise_sd: √(σ² − h²/12), the sd of the view's noise in units of √η, () or (D,).
    power: p of the stretched quantiles.
    edge: the lattice index up to which views have near rows.
    quantiles: (edge + 1 + FAR_ROWS, COLUMNS), of ±r(|u|) in near rows, of u − v in far ones.
    """

    step_size: float
    noise_sd: Tensor
    power: int
    edge: int
    quantiles: Tensor


class TableIndex(NamedTuple):
    """Where the table holds u, for every offset.

    cell: lattice index of v, a whole number.
    corner: index of the quantile just below the score in the flattened table, int32.
    along: interpolation weight of the next quantile.
    """

    cell: Tensor
    corner: Tensor
    along: Tensor


def prepare(scales: ScalePosterior, step_size: float, curvature: Tensor | float = 0.0) -> Settings:
    """Tabulate the one-dimensional draws for a prior and a step size; takes a quarter of a second.

    Args:
        scales: the prior; the tables get its dtype and device.
        step_size: ε = 2η, in weight².
        curvature: a + s² of the log-likelihood along each weight (D,), or one for all: its
            curvature and the variance of its gradient's estimate, which σ makes up for. 0 by
            default: nothing is known, and the bias is SGLD's.

    Raises:
        ValueError: a step size that is not positive, or so large that β√η exceeds about 3e6 or
            η(a + s²) exceeds 0.8; a curvature that is negative or not finite.

    Example:
        >>> settings = prepare(ScalePosterior(alpha=0.01, beta=100.0), step_size=1e-4)
        >>> offset = torch.zeros(2, 3)                     # two chains, three weights
        >>> step(offset, torch.zeros(2, 3), torch.randn(2, 2, 3), settings).shape
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
    noise_sd = (1 - lost - SPACING**2 / 12).sqrt()
    return Settings(step_size, noise_sd, power, cells, table.to(scales.device))


def step(offset: Tensor, gradient: Tensor, noise: Tensor, settings: Settings) -> Tensor:
    """Take one step Δ -> Δ', all at once; `at_scale/fused_update.py` takes the same one in blocks.

    Args:
        offset: Δ, any shape.
        gradient: ĝ of the log-likelihood, of the same shape.
        noise: two standard normals for each offset, (2, *shape).
        settings: of `prepare`.
    """
    unit = sqrt(0.5 * settings.step_size)
    view = noisy_view(offset, gradient, noise[0], unit, settings.noise_sd)
    return unit * draw_unit(view, noise[1], settings)


def noisy_view(
    offset: Tensor,
    gradient: Tensor,
    noise: Tensor,
    unit: Tensor | float,
    noise_sd: Tensor,
) -> Tensor:
    """Give the view v = y/√η = Δ/√η + √η ĝ + noise_sd · ξ.

    Args:
        offset: Δ.
        gradient: ĝ.
        noise: ξ, standard normal.
        unit: √η.
        noise_sd: sd of v's noise; σ where v is not rounded.
    """
    return offset * (1 / unit) + unit * gradient + noise_sd * noise


def draw_unit(view: Tensor, noise: Tensor, settings: Settings) -> Tensor:
    """Draw u ~ density ∝ m(√η u) N(u; v, 1) with v rounded to the lattice; any shape."""
    return read_unit(find_index(view, noise, settings), settings)


def find_index(view: Tensor, noise: Tensor, settings: Settings) -> TableIndex:
    """Find where the table holds u, for a view v and a standard normal score."""
    cell = (view * (1 / SPACING)).round()
    size = cell.abs()  # laws at v and −v are mirror images
    edge = settings.edge
    # What is not finite reads the last row, and stays so.
    row = torch.where(size <= edge, size, far_row(size, edge) + (edge + 1.0))
    column, along = score_column(noise, COLUMNS)
    return TableIndex(cell, row.to(torch.int32) * COLUMNS + column, along)


def read_unit(index: TableIndex, settings: Settings) -> Tensor:
    """Read u off the table."""
    flat, size = settings.quantiles.flatten(), index.cell.abs()
    quantile = torch.lerp(flat[index.corner], flat[index.corner + 1], index.along)
    unstretched = torch.copysign(unstretch(quantile.abs(), settings.power), quantile)
    drawn = torch.where(size <= settings.edge, unstretched, size * SPACING + quantile)
    return torch.where(index.cell < 0, -drawn, drawn)
