"""The Laplace/Gamma prior of one weight, with its scale integrated out or drawn given the weight.

    w ~ Laplace(anchor, λ),    λ ~ Gamma(shape α, rate β)         (Kim & Hospedales, NeurIPS 2023)

With Δ = |w − anchor| and z = 2√(βΔ) everything about a scale follows from its weight:

    p(λ | Δ) ∝ λ^{α−2} exp(−βλ − Δ/λ)                              generalised inverse Gaussian
    E[λᵏ | Δ] = (Δ/β)^{k/2} K_{α−1+k}(z) / K_{α−1}(z)              (Jørgensen 1982)
    m(w) = β^α/Γ(α) · (Δ/β)^{(α−1)/2} K_{α−1}(z)                   density of w, λ integrated out
    ∂ log m / ∂Δ = −E[1/λ | Δ]

so a posterior of weights under m is the posterior of the hierarchy, and scales need no chain of
their own. All of these depend on Δ alone and their logarithms are smooth in log Δ, with straight
ends. PyTorch has no Bessel function of fractional order; a table from `scipy.special.kve`, read
linearly in log Δ, is one gather and one exponential an element on any device, and traces.
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

Array = NDArray[np.float64]

SMALLEST = 2e-38  # of Δ; float32 has nothing normal below 1.2e-38
FINE, COARSE = 0.02, 0.125  # spacing in log Δ of the curves, and of the quantiles
REACH, COLUMNS = 6.0, 257  # quantiles at standard normal scores −6 to 6; beyond lies 2e-9
SMALLEST_SHAPE, LARGEST_SHAPE = 1e-4, 100.0


@dataclass(frozen=True)
class ScalePosterior:
    """Scales and collapsed prior given offsets from the anchor, for one (α, β).

    Tables cover 2e-38 ≤ Δ ≤ max(1e4, 1e6/β). Smaller offsets, zero among them, count as 2e-38;
    larger ones follow the curves' straight ends. Curves err by less than 1e-4, relatively.

    Args:
        alpha: shape α of the Gamma prior in [1e-4, 100]; 0.01 in the paper: few weights move.
        beta: rate β > 0 in units of 1/weight; 100 in the paper, a prior mean α/β of 1e-4.
        dtype, device: of the tables; those of the offsets.

    Raises:
        ValueError: α or β out of range.

    Example:
        >>> scales = ScalePosterior(alpha=0.01, beta=100.0)
        >>> [f"{mean:.1e}" for mean in scales.expected_scale(torch.tensor([1e-6, -1e-3])).tolist()]
        ['8.4e-06', '1.9e-03']
    """

    alpha: float = 0.01
    beta: float = 100.0
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
        """√(2α(α + 1))/β, the prior standard deviation of an offset."""
        return sqrt(2 * self.alpha * (self.alpha + 1)) / self.beta

    def expected_scale(self, offset: Tensor) -> Tensor:
        """E[λ | Δ = |offset|], any shape: the Rao–Blackwellised scale, monotone in Δ."""
        return self._curve(0, offset).exp()

    def expected_square(self, offset: Tensor) -> Tensor:
        """E[λ² | Δ = |offset|], any shape; less `expected_scale`² it is the variance of λ."""
        return self._curve(1, offset).exp()

    def log_marginal(self, offset: Tensor) -> Tensor:
        """log m: log density of the signed offset with λ integrated out, normalised, any shape.

        At α ≤ 1 it has an integrable pole at 0, where this gives its value at Δ = 2e-38.
        """
        root = 2 * (self.beta * offset.abs().clamp_min(SMALLEST)).sqrt()
        return self._curve(2, offset) - root

    def score(self, offset: Tensor) -> Tensor:
        """∂ log m / ∂offset = −sign(offset) E[1/λ | Δ], any shape; 0 at 0.

        At α ≤ 1 it grows as (1 − α)/Δ towards 0: no step size follows it (see `proximal`).
        """
        return -offset.sign() * self._curve(3, offset).exp()

    def draw_scale(self, offset: Tensor, noise: Tensor) -> Tensor:
        """An exact draw of λ | Δ = |offset|: the quantile at Φ(noise).

        log λ is read off a table, linear in log Δ and in the normal score; below 1e-3 in total
        variation. A standard normal takes the place of a uniform as it resolves both tails in
        float32, and as samplers are given normals anyway.

        Args:
            offset: offsets from the anchor, any shape.
            noise: standard normal draws, same shape.

        Example:
            >>> scales = ScalePosterior(alpha=5.0, beta=50.0)
            >>> draws = scales.draw_scale(torch.full((10000,), 0.2), torch.randn(10000))
            >>> abs(draws.mean() / scales.expected_scale(torch.tensor(0.2)) - 1).item() < 0.03
            True
        """
        row, across = self._place(offset, COARSE, len(self.quantiles))
        column, along = grid_place(noise, COLUMNS)
        corner = row * COLUMNS + column
        flat = self.quantiles.flatten()
        lower = torch.lerp(flat[corner], flat[corner + 1], along)
        upper = torch.lerp(flat[corner + COLUMNS], flat[corner + COLUMNS + 1], along)
        return torch.lerp(lower, upper, across).exp()

    def _curve(self, number: int, offset: Tensor) -> Tensor:
        row, fraction = self._place(offset, FINE, self.curves.shape[1])
        curve = self.curves[number]
        return torch.lerp(curve[row], curve[row + 1], fraction)

    def _place(self, offset: Tensor, spacing: float, rows: int) -> tuple[Tensor, Tensor]:
        # The fraction is not held below 1: beyond the last row the curve goes on straight.
        place = (offset.abs().clamp_min(SMALLEST).log() - log(SMALLEST)) / spacing
        row = place.clamp(0, rows - 2).floor().nan_to_num()  # NaN stays one, in the fraction
        return row.to(torch.int32), place - row


def drawn(scales: ScalePosterior) -> TensorFunction:
    """What a kept draw's offsets and noise say of their scales: one draw of each."""

    def read(offset: Tensor, noise: Tensor) -> Sequence[Tensor]:
        return [scales.draw_scale(offset, noise)]

    return read


def expected(scales: ScalePosterior) -> TensorFunction:
    """As `drawn`, without chance: E[λ | Δ], and Var[λ | Δ]."""

    def read(offset: Tensor, noise: Tensor) -> Sequence[Tensor]:
        mean = scales.expected_scale(offset)
        return [mean, (scales.expected_square(offset) - mean.square()).clamp_min(0)]

    return read


def grid_place(noise: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Standard normal scores -> column and fraction on an even grid over [−REACH, REACH].

    Scores beyond the grid, two in 10⁹, count as its ends.
    """
    place = ((noise + REACH) * ((columns - 1) / (2 * REACH))).clamp(0, columns - 1)
    column = place.clamp_max(columns - 2).floor()
    return column.to(torch.int32), place - column


def scores(columns: int) -> Array:
    """The grid that `grid_place` refers to."""
    return np.linspace(-REACH, REACH, columns)


def invert(masses: Array, nodes: Array, columns: int) -> Array:
    """Quantiles at `scores(columns)` of a law on an interval cut into cells.

    Args:
        masses: (M,) each cell's share, in any unit.
        nodes: (M + 1,) the cells' ends, ascending.

    Returns:
        (columns,) quantiles, linear in the normal score of the distribution function, which is
        summed from both ends so that either tail keeps its digits.
    """
    below = np.concatenate([[0.0], np.cumsum(masses)])
    above = np.concatenate([np.cumsum(masses[::-1])[::-1], [0.0]])
    lower, upper = (np.maximum(part / below[-1], 1e-300) for part in (below, above))
    score = np.where(lower < 0.5, ndtri(lower), -ndtri(upper))
    keep = np.concatenate([[True], np.diff(np.maximum.accumulate(score)) > 0])
    return np.asarray(np.interp(scores(columns), score[keep], nodes[keep]))


def log_bessel(order: float, z: Array) -> Array:
    """log(K_order(z) e^z), beyond the range of floating point too where z is small."""
    with np.errstate(divide="ignore"):
        known = np.log(kve(order, z))
    order = abs(order)
    if np.isfinite(known).all():
        return np.asarray(known)
    leading = gammaln(order) - log(2) + order * np.log(2 / z) + z - z**2 / (4 * (order - 1))
    return np.asarray(np.where(np.isfinite(known), known, leading))


def log_marginal_density(delta: Array, alpha: float, beta: float) -> Array:
    """log m at offsets Δ > 0 in double precision, the table's own source."""
    z = 2 * np.sqrt(beta * delta)
    return np.asarray(_log_marginal_without_decay(delta, alpha, beta) - z)


def _log_marginal_without_decay(delta: Array, alpha: float, beta: float) -> Array:
    constant = alpha * log(beta) - lgamma(alpha)
    bessel = log_bessel(alpha - 1, 2 * np.sqrt(beta * delta))
    return np.asarray(constant + 0.5 * (alpha - 1) * np.log(delta / beta) + bessel)


def _curves(delta: Array, alpha: float, beta: float) -> Array:
    """(4, rows): log E[λ|Δ], log E[λ²|Δ], log m + 2√(βΔ), log E[1/λ|Δ]."""
    z, half = 2 * np.sqrt(beta * delta), 0.5 * np.log(delta / beta)
    base = log_bessel(alpha - 1, z)
    first, second, inverse = (k * half + log_bessel(alpha - 1 + k, z) - base for k in (1, 2, -1))
    return np.stack([first, second, _log_marginal_without_decay(delta, alpha, beta), inverse])


def _log_scale_quantiles(delta: Array, alpha: float, beta: float) -> Array:
    """(rows, COLUMNS): quantiles of s = log λ | Δ, whose density is log-concave in s."""
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
