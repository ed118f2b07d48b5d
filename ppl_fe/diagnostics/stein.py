"""The kernel Stein discrepancy: do draws fit the scores ∇log p of the density they are to follow?

For a kernel k and scores s = ∇log p, Stein's identity makes

    h(x, y) = s(x)·s(y) k + s(x)·∇_y k + s(y)·∇_x k + tr ∇_x ∇_y k

of mean zero in each argument under p (Liu, Lee & Jordan 2016, A kernelized Stein discrepancy for
goodness-of-fit tests), so that E h(X, Y) over independent X, Y of a law q is zero for q = p and
positive otherwise. The normalising constant of p is not needed, nor any exact draw of it. The
kernel is the inverse multiquadric k = (c² + |x − y|²)^{−1/2}, whose slow decay makes the
discrepancy see draws that run off, which a Gaussian kernel's does not from three dimensions on
(Gorham & Mackey 2017, Measuring sample quality with kernels).

What it sees: a wrong temperature, a chain that has not arrived, a wrong gradient, in few
dimensions. What it cannot see:

- Missing modes. Scores are local: draws of one of two far modes fit p as well as draws of both.
- Much in many dimensions. Share of tests with a p-value of 0.001, the least there is, on 400
  independent draws of a Gaussian at T_eff/T of 1.5: 18 % for D = 1, 49 % for D = 10, 3 % for
  D = 100, none for D = 1000; at 2: 96 %, 100 %, 34 %, none. A pass in a network's thousands of
  dimensions says little. Correlation takes power, too: autoregressive draws of 0.5 at T_eff/T of 2
  leave 13 %, 25 % and 1 %.
- A bias much smaller than the spread of the draws kept. An excess temperature of 5 % goes
  unnoticed in 400 draws, and so it should: a discretised chain never follows p exactly, and fails
  every such test if the draws are many enough. The temperatures measure that bias; this test
  asks whether anything is grossly wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from ppl_fe.arguments import named_arguments
from ppl_fe.diagnostics.diagnosis import Check
from ppl_fe.diagnostics.scores import arguments_of, scored_draws, thinned
from ppl_fe.inference.kernels import Kernel

MOST_DRAWS = 400
LEAST_DRAWS = 20
NUM_BOOTSTRAPS = 999
LEAST_P = 0.001  # the least that 999 resampled values can show
SHORTFALL = 0.1  # of the long-run variance under the bootstrap, at most
TILE_NUMBERS, TILE_ROWS = 2**22, 512


@dataclass(frozen=True)
class SteinTest:
    """A test of draws against the scores of their target.

    Attributes:
        value: the squared discrepancy, in coordinates of unit standard deviation.
        p_value: of the hypothesis that the draws follow the target; at least 0.001.
        num_draws: M, the draws that it is based on.
        flip_probability: of the bootstrap's signs, ½ for independent draws; few flips in all,
            num_draws · flip_probability, mean draws too correlated to reject anything.
    """

    value: float
    p_value: float
    num_draws: int
    flip_probability: float


@named_arguments
def stein_check(
    draws: xr.DataTree,
    model: Kernel | Callable[..., Any],
    data: Any,
    *,
    most_draws: int = MOST_DRAWS,
) -> SteinTest:
    """Test the draws of `fe.sample` against the scores of their program on all the data.

    This is `stein_test`, which says how, for draws that bring their program.

    The draws are thinned to at most `most_draws`, evenly within each chain: the test costs that
    many gradients on all the data, and what it cannot see in 400 draws it need not see. Draws at
    temperature T are held against ∇log p / T.

    Args:
        draws: of `fe.sample`.
        model: the program of the draws, or the kernel that made them.
        data: the program's arguments: a tuple of them, a mapping of those given by keyword, or
            the single one as it is; a list counts as one argument.
        most_draws: M at most, 400 by default.

    Raises:
        ValueError, TypeError: as `full_data_scores` and `stein_test`; `data` that are not the
            program's arguments; draws at temperature 0, which follow no density.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> import ppl_fe as fe
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> how = {"num_samples": 50, "thinning": 10, "progress_bar": False}
        >>> draws = fe.sample(fe.BAOAB(model), torch.ones(9), **how)
        >>> stein_check(draws, model, torch.ones(9)).p_value > 0.01
        True
        >>> stein_check(draws, model, torch.zeros(9)).p_value        # other data
        0.001
    """
    temperature = float(draws.attrs.get("temperature", 1.0))
    if not temperature > 0:
        raise ValueError("draws at temperature 0 follow no density: there are no scores to test")
    found = scored_draws(model, thinned(draws, most_draws), *arguments_of(model, data))
    return stein_test(found.positions, found.scores / temperature)


@named_arguments
def stein_test(
    positions: Tensor, scores: Tensor, *, flip_probability: float | None = None, seed: int = 0
) -> SteinTest:
    """Test draws of several chains against scores by the wild bootstrap for correlated draws.

    Under the hypothesis M·V is a weighted sum of χ²₁, its weights those of the *long-run*
    covariance of the draws. Σ_ij W_i W_j h_ij / M² has that law when W is a chain of signs, each
    equal to the one before but for a flip of probability a, as long as flips are rare on the scale
    of the draws' correlation (Chwialkowski, Strathmann & Gretton 2016, A kernel test of goodness
    of fit). Chains are independent, so each begins with its own sign. The p-value is
    (1 + the number of 999 resampled values at least as large) / 1000.

    The signs' autocorrelation (1 − 2a)^k damps that of the draws, so the variance falls
    short, for autoregressive draws of autocorrelation time τ by the share a(τ² − 1)/τ at small
    a. Therefore a = 0.1 τ/(τ² − 1), at most ½, for the slowest coordinate's τ (Geyer's
    initial positive sequence about the mean of all chains, so that chains that disagree count as
    slow): 10 % at most.

    Args:
        positions: draws (C, S, D). Coordinates are divided by their standard deviation, and scores
            multiplied by it, which makes the test independent of units.
        scores: ∇log of the density that they follow, (C, S, D).
        flip_probability: a, in (0, ½]; by default as above. ½ takes the draws for independent.
        seed: of the signs, 0 by default.

    Raises:
        ValueError: other shapes; fewer than 20 draws; values that are not finite; a coordinate
            in which no draw differs; a flip_probability out of range.

    Example:
        >>> draws = torch.randn(4, 50, 2, generator=torch.Generator().manual_seed(0))
        >>> stein_test(draws, -draws).p_value > 0.01                 # they follow N(0, I)
        True
        >>> stein_test(2 * draws, -2 * draws).p_value                # they are twice as wide
        0.001
    """
    check_draws(positions, scores, 3)
    num_chains, each, size = positions.shape
    count = num_chains * each
    if count < LEAST_DRAWS:
        raise ValueError(f"a test needs at least {LEAST_DRAWS} draws, got {count}")
    spread = positions.flatten(0, 1).std(0)
    if not (spread > 0).all():
        still = int((spread > 0).logical_not().nonzero()[0])
        raise ValueError(f"all draws are equal in coordinate {still}: the chains do not move there")
    scaled = (positions - positions.mean((0, 1))) / spread
    if flip_probability is None:
        tau = max(autocorrelation_time(part) for part in _parts(scaled))
        flip_probability = 0.5 if tau <= 1 else min(0.5, SHORTFALL * tau / (tau**2 - 1))
    if not 0 < flip_probability <= 0.5:
        raise ValueError(f"flip_probability must lie in (0, 1/2], got {flip_probability}")
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(NUM_BOOTSTRAPS, num_chains, each, generator=generator)
    flips = uniform < flip_probability
    flips[..., 0] = uniform[..., 0] < 0.5
    signs = (1 - 2 * (flips.cumsum(-1) % 2)).flatten(1).double()
    signs = torch.cat([torch.ones(1, count, dtype=signs.dtype), signs]).to(positions.device)
    forms = signs.new_zeros(len(signs))  # the first with all signs +1: the statistic
    blocks = tiles(scaled.reshape(count, size), (scores * spread).reshape(count, size), 1.0)
    for rows, columns, tile in blocks:
        forms += ((signs[:, rows] @ tile) * signs[:, columns]).sum(-1)
    # The statistic and a resampled value with no flips differ by rounding alone.
    exceeding = int((forms[1:] >= forms[0] * (1 - 1e-9)).sum())
    return SteinTest(
        value=forms[0].item() / count**2,
        p_value=(1 + exceeding) / (1 + NUM_BOOTSTRAPS),
        num_draws=count,
        flip_probability=flip_probability,
    )


def stein_p_value(
    draws: xr.DataTree, model: Kernel | Callable[..., Any] | None, data: Any, group: int | None
) -> Check | None:
    """Check the p-value of `stein_check`, which one healthy run in a thousand fails.

    Returns:
        None without a model.

    Raises:
        ValueError: data without a model; a model for one of several targets, which has further
            inputs (an anchor, a temperature) that `data` does not hold; and as `stein_check`.
    """
    if model is None:
        if not isinstance(data, tuple) or data:
            raise ValueError("data without model: give the program that the draws are of, too")
        return None
    if group is not None:
        raise ValueError("model and data stand for one target; of several, leave them out")
    advice = (
        "the draws do not follow the slope of the model's density: make sure that model and data "
        "are those of the run, raise warmup_steps, lower step_size"
    )
    found = stein_check(draws, model, data)
    return Check.above("stein_p_value", found.p_value, LEAST_P, advice)


def kernel_stein_discrepancy(positions: Tensor, scores: Tensor, *, scale: float = 1.0) -> float:
    """Compute the squared kernel Stein discrepancy of M draws, Σ_ij h(x_i, x_j)/M².

    A V-statistic: it is never negative and vanishes only as M → ∞; of independent draws of p its
    mean is E h(X, X)/M = (E|s|²/c + D/c³)/M. The U-statistic without i = j has mean zero for
    independent draws only; of a chain, the terms next to the diagonal are as large, and the
    wild bootstrap resamples both alike.

    In time O(M² D) and, beside the arguments, bounded memory. Precision is double.

    Args:
        positions: draws (M, D), in coordinates of like spread (`stein_test` sees to that).
        scores: ∇log p there, (M, D).
        scale: c, 1 by default, in units of the standard deviation: the median of |x − y|, √(2D),
            was blind in comparison (400 draws, D = 10, T_eff/T = 1.5: rejected at the 1 % level in
            13 % of repeats, not 92 %).

    Raises:
        ValueError: other shapes than (M, D) twice; values that are not finite; scale ≤ 0.

    Example:
        >>> draws = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
        >>> exact = kernel_stein_discrepancy(draws, -draws)          # mean 2/500 under N(0, 1)
        >>> shifted = kernel_stein_discrepancy(draws + 1, -draws - 1)
        >>> exact < 0.02 < shifted
        True
    """
    check_draws(positions, scores, 2)
    if not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}")
    total = sum(tile.sum().item() for _, _, tile in tiles(positions, scores, scale))
    return total / len(positions) ** 2


def tiles(positions: Tensor, scores: Tensor, scale: float) -> Iterator[tuple[slice, slice, Tensor]]:
    """Compute h(x_i, x_j) over blocks of rows and columns, of at most 2²² numbers of either."""
    count, size = positions.shape
    centre = positions.mean(0).double()  # inner products cancel, far from the origin
    step = max(1, min(TILE_ROWS, TILE_NUMBERS // size))
    blocks = [slice(k, k + step) for k in range(0, count, step)]
    for rows in blocks:
        x, s = positions[rows].double() - centre, scores[rows].double()
        for columns in blocks:
            y, t = positions[columns].double() - centre, scores[columns].double()
            yield rows, columns, _stein_kernel(x, s, y, t, scale)


def _stein_kernel(x: Tensor, s: Tensor, y: Tensor, t: Tensor, scale: float) -> Tensor:
    """Compute h, (M, N), at (M, D) and (N, D) for k = q^{−1/2}, q = c² + |x − y|².

    ∇_y k = (x − y) q^{−3/2} = −∇_x k and tr ∇_x ∇_y k = D q^{−3/2} − 3 |x − y|² q^{−5/2}.
    """
    square = x.square().sum(-1)[:, None] + y.square().sum(-1) - 2 * x @ y.T
    square = square.clamp_min(0)
    slopes = (s * x).sum(-1)[:, None] + (t * y).sum(-1) - s @ y.T - x @ t.T  # (s − t)·(x − y)
    q = scale**2 + square
    k = q.rsqrt()
    return k * (s @ t.T) + k**3 * (slopes + x.shape[-1]) - 3 * k**5 * square


def autocorrelation_time(values: Tensor) -> float:
    """Compute τ = 1 + 2 Σ_k ρ_k of the slowest coordinate of draws (C, S, D) of mean zero.

    Sums of two neighbouring ρ_k are positive in a reversible chain; the series is cut at the first
    that is not (Geyer 1992, Practical Markov chain Monte Carlo).
    """
    num_draws = values.shape[1]
    padded = torch.fft.rfft(values.double(), n=2 * num_draws, dim=1)
    covariance = torch.fft.irfft(padded.abs().square(), dim=1)[:, :num_draws].sum(0)
    correlation = covariance / covariance[0]
    if num_draws % 2:
        correlation = torch.cat([correlation, torch.zeros_like(correlation[:1])])
    pairs = correlation[0::2] + correlation[1::2]
    kept = pairs * (pairs > 0).cumprod(0)
    return float((2 * kept.sum(0) - 1).max())


def _parts(values: Tensor) -> Iterator[Tensor]:
    """Split into runs of coordinates, each of bounded size."""
    return iter(torch.split(values, max(1, TILE_NUMBERS // values[..., 0].numel()), -1))


def check_draws(positions: Tensor, scores: Tensor, dimensions: int) -> None:
    """Refuse other shapes than (M, D) or (C, S, D) twice, and values that are not finite."""
    names = "(M, D)" if dimensions == 2 else "(C, S, D)"
    if positions.dim() != dimensions or positions.shape != scores.shape or not positions.numel():
        raise ValueError(
            f"positions and scores must both be {names}, got {tuple(positions.shape)} and "
            f"{tuple(scores.shape)}"
        )
    for name, values in (("positions", positions), ("scores", scores)):
        if not torch.isfinite(values).all():
            raise ValueError(f"{name} hold NaN or infinity; leave out the chains that failed")
