"""One Laplace scale for a group of weights: exact draws of both, given a noisy view of the weights.

    u_i ~ Laplace(0, 1/r) for the i of a group,    v_i ~ N(u_i, 1),    r = √η/λ

In units of √η, v is the proximal sampler's y (`proximal`), whose argument holds for any prior: what
it wants is a draw of (u, r) given v. The prior of a whole group with its scale integrated out does
not factorise, but the view's does given the scale,

    p(v | r) = (r/2) e^{−v²/2} [h(r − v) + h(r + v)],    h(x) = e^{x²/2} Φ(−x),

so a Metropolis step moves λ with the weights integrated out, and each weight is then drawn from

    p(u | v, r) ∝ e^{−r|u|} N(u; v, 1),    two truncated normals.

Given the weights themselves λ is generalised inverse Gaussian again, of order α − n for n weights,
but drawing the two in turn sticks: among n weights λ moves by a factor of about 1 ± 1/√n a step.
"""

from __future__ import annotations

from math import log, pi, sqrt
from typing import Literal

import torch
from torch import Tensor

from ppl_fe.networks.flat import FlatNetwork

Grouping = Literal["layer", "row"]
FAR = 2.0  # beyond it a tail is drawn by Newton's method: single precision has no digits left
NEWTON_STEPS = 2
LARGEST_RATE = 1e30


def group_index(network: FlatNetwork, grouping: Grouping) -> Tensor:
    """The group of every weight, (D,) int32 from 0 to G − 1.

    "layer" is a tensor; "row" is a row of a matrix (all weights of one output, in convolutions
    too), and a tensor of one dimension is one group.

    Example:
        >>> network = FlatNetwork(torch.nn.Linear(2, 2))
        >>> group_index(network, "layer").tolist(), group_index(network, "row").tolist()
        ([0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 2, 2])
    """
    parts, start = [], 0
    for shape in network.shapes:
        rows = shape[0] if grouping == "row" and len(shape) > 1 else 1
        numbers = torch.arange(start, start + rows, dtype=torch.int32, device=network.device)
        parts.append(numbers.repeat_interleave(shape.numel() // rows))
        start += rows
    return torch.cat(parts)


def log_view(mean: Tensor, rate: Tensor) -> Tensor:
    """log p(v | r), any shape; −½ log 2π less.

    Example:
        >>> density = log_view(torch.linspace(-40, 40, 4001), torch.tensor(0.5)).exp()
        >>> round(density.sum().item() * 0.02 / sqrt(2 * pi), 4)
        1.0
    """
    sides = torch.logaddexp(_log_h(rate - mean), _log_h(rate + mean))
    return (0.5 * rate).log() + 0.5 * log(2 * pi) - 0.5 * mean.square() + sides


def draw_offset(mean: Tensor, rate: Tensor, noise: Tensor) -> Tensor:
    """u given v and r: the quantile at Φ(noise) of two truncated normals; any shape.

    Args:
        mean: v.
        rate: r > 0, of the same shape.
        noise: standard normal.

    Example:
        >>> draw_offset(torch.tensor(50.0), torch.tensor(2.0), torch.tensor(0.0))   # N(v − r, 1)
        tensor(48.)
    """
    minus, plus = _log_h(rate + mean), _log_h(rate - mean)
    below = torch.sigmoid(minus - plus)  # P(u < 0)
    uniform = torch.special.ndtr(noise)
    negative = uniform < below
    # From 0 outwards: how much of the chosen side lies beyond |u|.
    beyond = torch.where(
        negative, uniform / below, torch.special.ndtr(-noise) / torch.sigmoid(plus - minus)
    ).clamp(torch.finfo(mean.dtype).tiny, 1.0)
    size = _positive_normal(torch.where(negative, -mean, mean) - rate, beyond)
    return torch.where(negative, -size, size)


def _positive_normal(centre: Tensor, beyond: Tensor) -> Tensor:
    """The size that N(centre, 1), kept above zero, exceeds with the probability `beyond`."""
    near = centre - torch.special.ndtri(beyond * torch.special.ndtr(centre.clamp_min(-FAR)))
    # In the tail, with t = −centre: F(u) = log h(t) − log h(t + u) + ut + u²/2 = −log beyond, where
    # F' = 1/(√(2π) h(t + u)). Newton's method, begun where F's first two derivatives at 0 lead.
    t, exponent = -centre.clamp_max(-FAR), -beyond.log()
    start = _mills(t)
    slope = start.reciprocal()
    bend = slope * (slope - t).clamp_min(0)
    size = 2 * exponent / (slope + (slope.square() + 2 * bend * exponent).sqrt())
    for _ in range(NEWTON_STEPS):
        mills = _mills(t + size)
        excess = size * (t + 0.5 * size) - (mills / start).log() - exponent
        size = size - excess * mills
    return torch.where(centre < -FAR, size, near).clamp_min(0)


def _log_h(x: Tensor) -> Tensor:
    """log h(x) = x²/2 + log Φ(−x), without overflow on either side."""
    size, square = x.abs(), 0.5 * x.square()
    scaled = torch.special.erfcx(size * sqrt(0.5))  # 2 h(|x|)
    left = square + torch.log1p(-0.5 * scaled * (-square).exp())
    return torch.where(x > 0, scaled.log() - log(2), left)


def _mills(x: Tensor) -> Tensor:
    """√(2π) h(x), the tail's mass over its density, for x > 0."""
    ratio: Tensor = torch.special.erfcx(x * sqrt(0.5)) * sqrt(pi / 2)
    return ratio
