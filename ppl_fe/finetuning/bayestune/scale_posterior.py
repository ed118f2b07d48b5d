"""Equation (1) of `bayestune`, weight by weight: m(Δ), and the scale λ given the offset Δ.

With z = 2√(β|Δ|) everything about a scale follows from its weight's offset:

    p(λ | Δ) ∝ λ^{α−2} exp(−βλ − |Δ|/λ)                            generalised inverse Gaussian
    E[λᵏ | Δ] = (|Δ|/β)^{k/2} K_{α−1+k}(z) / K_{α−1}(z)            (Jørgensen 1982)
    m(Δ) = β^α/Γ(α) · (|Δ|/β)^{(α−1)/2} K_{α−1}(z)                 density of Δ, λ integrated out

so that scales need no chain of their own. All of these depend on |Δ| alone and their logarithms are
smooth in log |Δ|, with straight ends. PyTorch has no Bessel function of fractional order; a table
from `scipy.special.kve`, read linearly in log |Δ|, is one gather and one exponential an element on
any device, and traces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import lgamma, log, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammaln, kve, ndtri
from torch import Tensor

from ppl_fe.inference.step.compile import TensorFunction
from ppl_fe.models.priors import LaplaceGamma

Array = NDArray[np.float64]

SMALLEST = 2e-38  # of Δ; float32 has nothing normal below 1.2e-38
FINE, COARSE = 0.02, 0.125  # spacing in log Δ of the curves, and of the quantiles
REACH, COLUMNS = 6.0, 257  # quantiles at standard normal scores −6 to 6; beyond lies 2e-9
SMALLEST_SHAPE, LARGEST_SHAPE = 1e-4, 100.0


@dataclass(frozen=True)
class ScalePosterior:
    """The scales given offsets from the anchor, for one (α, β).

    Tables cover 2e-38 ≤ |Δ| ≤ max(1e4, 1e6/β). Smaller offsets, zero among them, count as 2e-38;
    larger ones follow the curves' straight ends. Curves err by less than 1e-4, relatively.

    Args:
        alpha: shape α of the Gamma prior in [1e-4, 100]; 0.01 by default, as in the paper, so that
            few weights move.
        beta: rate β > 0 in 1/weight; 100 by default, as in the paper: a prior mean α/β of 1e-4.
        dtype: that of the tables and of the offsets, float32 by default.
        device: that of the tables and of the offsets, "cpu" by default.

    Raises:
        ValueError: α or β out of range.

    Example:
        >>> scales = ScalePosterior(alpha=0.01, beta=100.0)
        >>> [f"{mean:.1e}" for mean in scales.expected_scale(torch.tensor([1e-6, -1e-3])).tolist()]
        ['8.4e-06', '1.9e-03']
    """

    alpha: float = LaplaceGamma.alpha
    beta: float = LaplaceGamma.beta
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    curves: Tensor = field(init=False, repr=False)
    quantiles: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not SMALLEST_SHAPE <= self.alpha <= LARGEST_SHAPE:
            raise ValueError(
                f"alpha must lie in [{SMALLEST_SHAPE:g}, {LARGEST_SHAPE:g}], got {self.alpha}"
            )
        if not 1e-20 <= self.beta <= 1e20:
            raise ValueError(f"beta must be a positive rate in [1e-20, 1e20], got {self.beta}")
        largest = max(1e4, 1e6 / self.beta)
        for name, spacing, tabulate in (
            ("curves", FINE, _curves),
            ("quantiles", COARSE, _log_scale_quantiles),
        ):
            delta = np.exp(np.arange(log(SMALLEST), log(largest) + spacing, spacing))
            table = torch.as_tensor(tabulate(delta, self.alpha, self.beta), dtype=self.dtype)
            object.__setattr__(self, name, table.to(self.device).contiguous())

    @property
    def offset_sd(self) -> float:
        """Give the prior standard deviation of an offset, √(2α(α + 1))/β."""
        return sqrt(2 * self.alpha * (self.alpha + 1)) / self.beta

    def expected_scale(self, offset: Tensor) -> Tensor:
        """Give E[λ | Δ], any shape: the Rao–Blackwellised scale, monotone in |Δ|."""
        return self._curve(0, offset).exp()

    def expected_square(self, offset: Tensor) -> Tensor:
        """Give E[λ² | Δ], any shape; less `expected_scale`² it is the variance of λ."""
        return self._curve(1, offset).exp()

    def draw_scale(self, offset: Tensor, noise: Tensor) -> Tensor:
        """Draw λ given Δ exactly: the quantile at Φ(noise).

        log λ is read off a table, linear in log |Δ| and in the normal score; below 1e-3 in total
        variation. A standard normal takes the place of a uniform as it resolves both tails in
        float32, and as samplers are given normals anyway.

        Args:
            offset: Δ, any shape.
            noise: standard normal draws, of the same shape.

        Returns:
            λ, of the same shape.

        Example:
            >>> scales = ScalePosterior(alpha=5.0, beta=50.0)
            >>> draws = scales.draw_scale(torch.full((10000,), 0.2), torch.randn(10000))
            >>> abs(draws.mean() / scales.expected_scale(torch.tensor(0.2)) - 1).item() < 0.03
            True
        """
        row, across = self._row(offset, COARSE, len(self.quantiles))
        column, along = score_column(noise, COLUMNS)
        corner = row * COLUMNS + column
        flat = self.quantiles.flatten()
        lower = torch.lerp(flat[corner], flat[corner + 1], along)
        upper = torch.lerp(flat[corner + COLUMNS], flat[corner + COLUMNS + 1], along)
        return torch.lerp(lower, upper, across).exp()

    def _curve(self, number: int, offset: Tensor) -> Tensor:
        row, fraction = self._row(offset, FINE, self.curves.shape[1])
        curve = self.curves[number]
        return torch.lerp(curve[row], curve[row + 1], fraction)

    def _row(self, offset: Tensor, spacing: float, rows: int) -> tuple[Tensor, Tensor]:
        """Find the row of a table at or below log |Δ|, and the fraction of a row beyond it."""
        # The fraction is not held below 1: beyond the last row the curve goes on straight.
        rows_above = (offset.abs().clamp_min(SMALLEST).log() - log(SMALLEST)) / spacing
        row = rows_above.clamp(0, rows - 2).floor().nan_to_num()  # NaN stays one, in the fraction
        return row.to(torch.int32), rows_above - row


def drawn(scales: ScalePosterior) -> TensorFunction:
    """Make the function (offsets, noise) -> [one draw of each scale]."""

    def draw(offset: Tensor, noise: Tensor) -> Sequence[Tensor]:
        return [scales.draw_scale(offset, noise)]

    return draw


def expected(scales: ScalePosterior) -> TensorFunction:
    """Make the function (offsets, noise) -> [E[λ | Δ], Var[λ | Δ]]; it ignores the noise."""

    def average(offset: Tensor, noise: Tensor) -> Sequence[Tensor]:
        mean = scales.expected_scale(offset)
        return [mean, (scales.expected_square(offset) - mean.square()).clamp_min(0)]

    return average


def score_column(noise: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Find the column at or below standard normal scores, and the fraction of a column beyond it.

    Columns stand on an even grid over [−REACH, REACH]; scores beyond it, two in 10⁹, count as its
    ends.
    """
    columns_above = ((noise + REACH) * ((columns - 1) / (2 * REACH))).clamp(0, columns - 1)
    column = columns_above.clamp_max(columns - 2).floor()
    return column.to(torch.int32), columns_above - column


def score_grid(columns: int) -> Array:
    """Give the normal scores at which the columns of a table stand (columns,)."""
    return np.linspace(-REACH, REACH, columns)


def invert(masses: Array, nodes: Array, columns: int) -> Array:
    """Invert the distribution function of a law on an interval cut into cells.

    Args:
        masses: (M,) each cell's share, in any unit.
        nodes: (M + 1,) the cells' ends, ascending.

    Returns:
        Quantiles at `score_grid(columns)`, (columns,), linear in the normal score of the
        distribution function, which is summed from both ends so that either tail keeps its digits.
    """
    below = np.concatenate([[0.0], np.cumsum(masses)])
    above = np.concatenate([np.cumsum(masses[::-1])[::-1], [0.0]])
    lower, upper = (np.maximum(part / below[-1], 1e-300) for part in (below, above))
    score = np.where(lower < 0.5, ndtri(lower), -ndtri(upper))
    keep = np.concatenate([[True], np.diff(np.maximum.accumulate(score)) > 0])
    return np.asarray(np.interp(score_grid(columns), score[keep], nodes[keep]))


def log_bessel(order: float, z: Array) -> Array:
    """Give log(K_order(z) e^z), beyond the range of floating point too where z is small."""
    with np.errstate(divide="ignore"):
        known = np.log(kve(order, z))
    order = abs(order)
    if np.isfinite(known).all():
        return np.asarray(known)
    leading = gammaln(order) - log(2) + order * np.log(2 / z) + z - z**2 / (4 * (order - 1))
    return np.asarray(np.where(np.isfinite(known), known, leading))


def log_marginal_density(delta: Array, alpha: float, beta: float) -> Array:
    """Give log m at offsets Δ > 0 in double precision."""
    z = 2 * np.sqrt(beta * delta)
    constant = alpha * log(beta) - lgamma(alpha)
    bessel = log_bessel(alpha - 1, 2 * np.sqrt(beta * delta))
    return np.asarray(constant + 0.5 * (alpha - 1) * np.log(delta / beta) + bessel - z)


def _curves(delta: Array, alpha: float, beta: float) -> Array:
    """Tabulate log E[λ | Δ] and log E[λ² | Δ], (2, rows)."""
    z, half = 2 * np.sqrt(beta * delta), 0.5 * np.log(delta / beta)
    base = log_bessel(alpha - 1, z)
    return np.stack([k * half + log_bessel(alpha - 1 + k, z) - base for k in (1, 2)])


def _log_scale_quantiles(delta: Array, alpha: float, beta: float) -> Array:
    """Tabulate the quantiles of s = log λ given Δ, of log-concave density in s, (rows, COLUMNS)."""
    table = []
    for d in delta:
        width = 100 + 4 * np.sqrt(beta * d) + 4 * alpha  # exponents: negligible beyond
        s = np.linspace(np.log(d / width), np.log(width / beta), 512)
        for count in (512, 2001):  # first to find where the law lies, then to integrate
            level = (alpha - 1) * s - beta * np.exp(s) - d * np.exp(-s)
            kept = np.flatnonzero(level > level.max() - 60)
            if count > 512:
                break
            low, high = s[max(kept[0] - 1, 0)], s[min(kept[-1] + 1, len(s) - 1)]
            s = np.linspace(low, high, 2001)
        density = np.exp(level - level.max())
        table.append(invert(density[1:] + density[:-1], s, COLUMNS))
    return np.stack(table)
