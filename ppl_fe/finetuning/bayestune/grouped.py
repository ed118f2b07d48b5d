"""Stage 1 with one scale for a layer or a row: `ScaleChains` under the grouped prior.

    λ_g ~ Gamma(α, rate β),    w_i ~ Laplace(anchor_i, λ_{g(i)})

The chain carries log λ. A step makes the noisy view y of the offsets as ever (`proximal`), moves
every λ by a Metropolis step with the offsets integrated out, and then draws the offsets
(`group_scales`).

At the paper's α = 0.01 the mean scales of groups of 1, 8 and 64 weights that did not move, moved
half and moved agree with quadrature (tests/statistical/test_group_selection.py). Of a group that is
between the two, in the spike half the time, a run of 1,300 steps sees few changes of side: there
one run's mean is off by up to half of itself, and the MCSE stated is 2 to 2.5 times too small.
"""

from __future__ import annotations

from math import log, pi, sqrt
from typing import Any, Literal

import torch
from torch import Tensor

from ppl_fe.finetuning.bayestune import proximal_step as proximal
from ppl_fe.finetuning.bayestune.scale_chains import ScaleChains
from ppl_fe.finetuning.flat_gradient import GradientParts
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


WIDEST = 30.0  # standard deviation of a proposal of log λ, whose prior has 1/α


class GroupScaleChains(ScaleChains):
    """As `ScaleChains`, with a scale a group; `plan.groups` says of what.

    Attributes:
        index: (D + padding,) the group of each weight; padding has one of its own.
        log_scale: (G + 1,) of the present chain, in double precision.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        assert self.plan.groups is not None
        own = group_index(self.network, self.plan.groups)
        self.num_groups = int(own[-1]) + 1
        padding = own.new_full((len(self.offset) - len(own),), self.num_groups)
        self.index = torch.cat([own, padding])
        self.log_scale = torch.zeros(
            self.num_groups + 1, dtype=torch.float64, device=self.offset.device
        )
        self._memory = self.working.weights.new_zeros(self.width)
        self._sizes = torch.bincount(self.index, minlength=len(self.log_scale)).clamp_min(1)

    def per_weight(self, values: Tensor) -> Tensor:
        """(D,) of what `moments` hold."""
        return values[self.index[: self.network.num_parameters]]

    def start(self, chain: int) -> None:
        super().start(chain)
        # As far apart as the offsets start: within a factor of e² of the step's own length.
        self.log_scale.normal_(generator=self._generator).add_(0.5 * log(self.step_size))

    def _prepare(self) -> float:
        return 1.0  # no lattice takes its share

    def _move(self, gradient: GradientParts) -> None:
        unit = sqrt(self.step_size / 2)  # √η
        for at in self.blocks:
            self.noise.normal_(generator=self._generator)
            part = gradient.block(at, self._memory).to(self.offset.dtype)
            ahead = -self.plan.data_size * part
            sd = self.forward_noise[at]
            self.offset[at] = proximal.forward(self.offset[at], ahead, self.noise, unit, sd)
        self._move_scales(log(unit))
        rate = self._rate(self.log_scale, log(unit))
        for at in self.blocks:
            self.noise.normal_(generator=self._generator)
            self.offset[at] = unit * draw_offset(self.offset[at], rate[self.index[at]], self.noise)
        self._write()

    def _move_scales(self, log_unit: float) -> None:
        """One Metropolis step of every log λ given the views, which stand in `offset`.

        The proposal's width is log-uniform from a group's own 1/√n to that of the prior, so that
        the scale of a group that moved and that of one that did not both find one that fits.
        """
        proposal, width, uniform = (torch.empty_like(self.log_scale) for _ in range(3))
        proposal.normal_(generator=self._generator)
        width.uniform_(generator=self._generator)
        uniform.uniform_(generator=self._generator)
        narrowest = self._sizes.double().rsqrt()
        proposal = self.log_scale + narrowest * (WIDEST / narrowest) ** width * proposal
        gain = torch.zeros_like(proposal)
        rates = [self._rate(values, log_unit) for values in (self.log_scale, proposal)]
        for at in self.blocks:
            now, then = (log_view(self.offset[at], rate[self.index[at]]) for rate in rates)
            # Differences are summed, in double precision: the sums themselves lose them.
            gain.index_add_(0, self.index[at], then.double() - now.double())
        gain += self.scales.alpha * (proposal - self.log_scale)
        gain -= self.scales.beta * (proposal.exp() - self.log_scale.exp())
        self.log_scale = torch.where(uniform.log() < gain, proposal, self.log_scale)

    def _rate(self, log_scale: Tensor, log_unit: float) -> Tensor:
        rate = (log_unit - log_scale).exp().clamp(1 / LARGEST_RATE, LARGEST_RATE)
        return rate.to(self.offset.dtype)

    def keep(self) -> None:
        if self.moments is None:
            self.moments = self._empty_moments(len(self.log_scale))
        everything = slice(0, len(self.log_scale))
        self.moments.add(everything, self.log_scale.exp().to(self.offset.dtype))
        self.moments.next()
