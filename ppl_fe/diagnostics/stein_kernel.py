"""The kernel Stein discrepancy, a sum over all pairs of draws."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

TILE_NUMBERS, TILE_ROWS = 2**22, 512


def kernel_stein_discrepancy(positions: Tensor, scores: Tensor, *, scale: float = 1.0) -> float:
    """The squared kernel Stein discrepancy of M draws, Σ_ij h(x_i, x_j)/M².

    A V-statistic: it is never negative and vanishes only as M → ∞; of independent draws of p its
    mean is E h(X, X)/M = (E|s|²/c + D/c³)/M. The U-statistic without i = j has mean zero for
    independent draws only; of a chain, the terms next to the diagonal are as large, and the
    wild bootstrap resamples both alike.

    In time O(M² D) and, beside the arguments, bounded memory. Precision is double.

    Args:
        positions, scores: (M, D), draws and ∇log p there, in coordinates of like spread
            (`stein_test` sees to that).
        scale: c. Fixed at 1, in units of the standard deviation: the median of |x − y|, √(2D), was
            blind in comparison (400 draws, D = 10, T_eff/T = 1.5: rejected at the 1 % level in
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
    """h(x_i, x_j) over blocks of rows and columns, of at most 2²² numbers of either."""
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
    """(M, D) twice, (N, D) twice -> h (M, N) of k = q^{−1/2}, q = c² + |x − y|².

    ∇_y k = (x − y) q^{−3/2} = −∇_x k and tr ∇_x ∇_y k = D q^{−3/2} − 3 |x − y|² q^{−5/2}.
    """
    square = x.square().sum(-1)[:, None] + y.square().sum(-1) - 2 * x @ y.T
    square = square.clamp_min(0)
    slopes = (s * x).sum(-1)[:, None] + (t * y).sum(-1) - s @ y.T - x @ t.T  # (s − t)·(x − y)
    q = scale**2 + square
    k = q.rsqrt()
    return k * (s @ t.T) + k**3 * (slopes + x.shape[-1]) - 3 * k**5 * square


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
