"""Learning coefficients of linear networks, y = B A x and deeper, in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations


def reduced_rank_learning_coefficient(M: int, N: int, H: int, r: int) -> float:
    """Learning coefficient of reduced-rank regression (Aoyagi & Watanabe 2005).

    y = B A x with A: H x M and B: N x H, the true product of rank r. Four cases:
    1. N+r <= M+H, M+r <= N+H, H+r <= M+N:
       [-(H+r)^2 - M^2 - N^2 + 2(H+r)M + 2(H+r)N + 2MN (+ 1 if M+N+H+r is odd)] / 8;
    2. M+H < N+r: (HM - Hr + Nr)/2;   3. N+H < M+r: (HN - Hr + Mr)/2;   4. M+N < H+r: MN/2.

    Args:
        M: inputs.
        N: outputs.
        H: hidden units.
        r: rank of the true product.

    Returns:
        The coefficient at the most singular point of the true set.

    Raises:
        ValueError: a width below 1, or a rank outside 0 .. min(M, N, H).

    Example:
        >>> reduced_rank_learning_coefficient(5, 5, 3, 0)
        6.5
    """
    _check_rank((M, H, N), r)
    if N + r > M + H:
        return (H * M - H * r + N * r) / 2
    if M + r > N + H:
        return (H * N - H * r + M * r) / 2
    if H + r > M + N:
        return M * N / 2
    K = H + r
    bracket = -(K**2) - M**2 - N**2 + 2 * K * M + 2 * K * N + 2 * M * N
    return (bracket + (M + N + K) % 2) / 8


def deep_linear_learning_coefficient(widths: Sequence[int], rank: int) -> float:
    """Learning coefficient of a deep linear network (Aoyagi 2024).

    With M_s = H_s - r, let S be the sum over the index set Sigma of l+1 smallest M_s for which
    max_Sigma < min outside, S >= l max_Sigma and S < l min outside; M = ceil(S/l),
    a = S - (M-1) l. The coefficient is (-r^2 + r (H_1 + H_last))/2 + a (l-a)/(4 l)
    - l (l-1)/4 (S/l)^2 + 1/2 sum_{i<j in Sigma} M_i M_j.

    Args:
        widths: H_1 .. H_{L+1}, from the inputs to the outputs, at least two.
        rank: r, the rank of the true product.

    Returns:
        The coefficient at the most singular point of the true set.

    Raises:
        ValueError: fewer than two widths, a width below 1, or a rank outside 0 .. min(widths).

    Example:
        >>> deep_linear_learning_coefficient([10, 10, 10], rank=3)
        44.0
        >>> deep_linear_learning_coefficient([4, 5, 6, 5, 4], rank=2)
        8.0
    """
    _check_rank(widths, rank)
    excess = sorted(width - rank for width in widths)
    for ell in range(1, len(excess)):
        chosen, outside = excess[: ell + 1], [*excess[ell + 1 :], math.inf][0]
        total = sum(chosen)
        if chosen[-1] < outside and ell * chosen[-1] <= total < ell * outside:
            break
    a = total - (math.ceil(total / ell) - 1) * ell
    value = (-(rank**2) + rank * (widths[0] + widths[-1])) / 2
    value += a * (ell - a) / (4 * ell) - (ell - 1) * total**2 / (4 * ell)
    return value + sum(i * j for i, j in combinations(chosen, 2)) / 2


def _check_rank(widths: Sequence[int], rank: int) -> None:
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths = {tuple(widths)}: give at least two, all at least 1.")
    if not 0 <= rank <= min(widths):
        raise ValueError(f"rank = {rank} must lie in 0 .. {min(widths)}, the smallest width.")
