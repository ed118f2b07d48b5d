"""Equations (1) and (2) of `bayestune` with one scale for a group of weights: a layer or a row.

    λ_g ~ Gamma(α, rate β),    Δ_i ~ Laplace(0, λ_{g(i)})

The argument for (2) holds for any prior: what it takes is a draw of (Δ', λ') given the view y. The
prior of a whole group with its scale integrated out does not factorise, but the view does given the
scale: in units of √η, with u = Δ/√η, v = y/√η and r = √η/λ,

    p(v | r) = (r/2) e^{−v²/2} [h(r − v) + h(r + v)],    h(x) = e^{x²/2} Φ(−x).

So a Metropolis step moves log λ, which the chain carries, with the offsets integrated out, and each
offset is then drawn from

    p(u | v, r) ∝ e^{−r|u|} N(u; v, 1),    two truncated normals.

Given the offsets themselves λ is generalised inverse Gaussian again, of order α − n for n weights,
but drawing the two in turn sticks: among n weights λ moves by a factor of about 1 ± 1/√n a step.

At the paper's α = 0.01 the mean scales of groups of 1, 8 and 64 weights that did not move, moved
half and moved agree with quadrature (tests/statistical/test_group_selection.py). Of a group that is
between the two, in the spike half the time, a run of 1,500 steps sees few changes of side: there
one run's mean is off by up to half of itself, as its MCSE says (`sequence_errors`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import log, pi, sqrt
from typing import Literal

import torch
from torch import Tensor

from ppl_fe.finetuning.bayestune import proximal_step as proximal
from ppl_fe.finetuning.bayestune.at_scale.fused_update import ScaleDraw
from ppl_fe.finetuning.bayestune.offsets import Offsets
from ppl_fe.finetuning.bayestune.scale_posterior import ScalePosterior
from ppl_fe.finetuning.flat_gradient import GradientParts
from ppl_fe.networks.flat import FlatNetwork

Grouping = Literal["layer", "row"]
FAR = 2.0  # beyond it a tail is drawn by Newton's method: single precision has no digits left
NEWTON_STEPS = 2
LARGEST_RATE = 1e30
WIDEST = 30.0  # standard deviation of a proposal of log λ, whose prior has 1/α


def group_index(network: FlatNetwork, grouping: Grouping) -> Tensor:
    """Number the group of every weight, (D,) int32 from 0 to G − 1.

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


def log_view(view: Tensor, rate: Tensor) -> Tensor:
    """Give log p(v | r) + ½ log 2π, any shape.

    Example:
        >>> density = log_view(torch.linspace(-40, 40, 4001), torch.tensor(0.5)).exp()
        >>> round(density.sum().item() * 0.02 / sqrt(2 * pi), 4)
        1.0
    """
    sides = torch.logaddexp(_log_h(rate - view), _log_h(rate + view))
    return (0.5 * rate).log() + 0.5 * log(2 * pi) - 0.5 * view.square() + sides


def draw_unit(view: Tensor, rate: Tensor, noise: Tensor) -> Tensor:
    """Draw u given v and r: the quantile at Φ(noise) of two truncated normals.

    Args:
        view: v, any shape.
        rate: r > 0, of the same shape.
        noise: standard normal, of the same shape.

    Example:
        >>> draw_unit(torch.tensor(50.0), torch.tensor(2.0), torch.tensor(0.0))   # N(v − r, 1)
        tensor(48.)
    """
    minus, plus = _log_h(rate + view), _log_h(rate - view)
    below = torch.sigmoid(minus - plus)  # P(u < 0)
    uniform = torch.special.ndtr(noise)
    negative = uniform < below
    # From 0 outwards: how much of the chosen side lies beyond |u|.
    beyond = torch.where(
        negative, uniform / below, torch.special.ndtr(-noise) / torch.sigmoid(plus - minus)
    ).clamp(torch.finfo(view.dtype).tiny, 1.0)
    size = _positive_normal(torch.where(negative, -view, view) - rate, beyond)
    return torch.where(negative, -size, size)


def _positive_normal(centre: Tensor, beyond: Tensor) -> Tensor:
    """Find the size that N(centre, 1), kept above zero, exceeds with the probability `beyond`."""
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
    """Give log h(x) = x²/2 + log Φ(−x), without overflow on either side."""
    size, square = x.abs(), 0.5 * x.square()
    scaled = torch.special.erfcx(size * sqrt(0.5))  # 2 h(|x|)
    left = square + torch.log1p(-0.5 * scaled * (-square).exp())
    return torch.where(x > 0, scaled.log() - log(2), left)


def _mills(x: Tensor) -> Tensor:
    """Give √(2π) h(x), the tail's mass over its density, for x > 0."""
    ratio: Tensor = torch.special.erfcx(x * sqrt(0.5)) * sqrt(pi / 2)
    return ratio


class GroupedUpdate:
    """Take steps Δ -> Δ' and λ -> λ' in place, with a scale a group.

    Args:
        scales: the prior.
        data_size: N̂, what the mean log-likelihood counts for.
        offsets: Δ and w, which are written.
        index: (D,) the group of each weight, of `group_index`.

    Attributes:
        log_scale: (G + 1,) of the present chain, in double precision; padding is a group too.
    """

    def __init__(
        self, scales: ScalePosterior, data_size: float, offsets: Offsets, index: Tensor
    ) -> None:
        self.scales, self.data_size, self._offsets = scales, data_size, offsets
        num_groups = int(index[-1]) + 1
        padding = index.new_full((len(offsets.values) - len(index),), num_groups)
        self._index = torch.cat([index, padding])
        self.log_scale = torch.zeros(
            num_groups + 1, dtype=torch.float64, device=offsets.values.device
        )
        self._sizes = torch.bincount(self._index, minlength=num_groups + 1).clamp_min(1)
        self._gradient = torch.zeros_like(offsets.weights[offsets.blocks[0]])
        self._noise = torch.zeros_like(offsets.values[offsets.blocks[0]])
        self._step_size = 0.0

    @property
    def num_scales(self) -> int:
        """Count the scales, that of the padding included."""
        return len(self.log_scale)

    def per_weight(self, values: Tensor) -> Tensor:
        """Give each weight (D,) what belongs to its scale."""
        return values[self._index[: len(self._offsets.anchor)]]

    def scale_of(self, weights: Tensor) -> Tensor:
        """Give the scales of some weights, all by number: those of their groups."""
        return self._index[weights].long()

    def prepare(self, step_size: float) -> float:
        """Set ε.

        Returns:
            Var(v | Δ) = 1, the variance of the view's noise before the curvature correction.
        """
        self._step_size = step_size
        return 1.0

    @property
    def _unit(self) -> float:
        return sqrt(self._step_size / 2)  # √η

    def start(self, generator: torch.Generator) -> None:
        """Start the scales as far apart as offsets: within a factor of e² of the step's length."""
        self.log_scale.normal_(generator=generator).add_(0.5 * log(self._step_size))

    def __call__(
        self, gradient: GradientParts, noise_sd: Tensor, generator: torch.Generator
    ) -> None:
        """Take one step.

        Args:
            gradient: ∂L/∂w of a minibatch's mean loss.
            noise_sd: (D + padding,) sd of the view's noise.
            generator: of the step's random numbers.
        """
        values, unit = self._offsets.values, self._unit
        for at in self._offsets.blocks:
            self._noise.normal_(generator=generator)
            part = gradient.block(at, self._gradient).to(values.dtype)
            ahead = -self.data_size * part
            # The views stand in the place of the offsets while the scales move.
            values[at] = proximal.noisy_view(values[at], ahead, self._noise, unit, noise_sd[at])
        self._move_scales(generator)
        rate = self._rate(self.log_scale)
        for at in self._offsets.blocks:
            self._noise.normal_(generator=generator)
            values[at] = unit * draw_unit(values[at], rate[self._index[at]], self._noise)
        self._offsets.write()

    def read_scales(self, generator: torch.Generator) -> Iterator[ScaleDraw]:
        """Give the present scales, all at once."""
        scale = self.log_scale.exp().to(self._offsets.values.dtype)
        yield slice(0, self.num_scales), [scale]

    def state(self) -> dict[str, Tensor]:
        """Give what a chain carries beside its offsets."""
        return {"log_scale": self.log_scale}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state`."""
        self.log_scale = state["log_scale"].to(self.log_scale)

    def _move_scales(self, generator: torch.Generator) -> None:
        """Take one Metropolis step of every log λ given the views.

        The proposal's width is log-uniform from a group's own 1/√n to that of the prior, so that
        the scale of a group that moved and that of one that did not both find one that fits.
        """
        proposal, width, uniform = (torch.empty_like(self.log_scale) for _ in range(3))
        proposal.normal_(generator=generator)
        width.uniform_(generator=generator)
        uniform.uniform_(generator=generator)
        narrowest = self._sizes.double().rsqrt()
        proposal = self.log_scale + narrowest * (WIDEST / narrowest) ** width * proposal
        gain = torch.zeros_like(proposal)
        rates = [self._rate(log_scale) for log_scale in (self.log_scale, proposal)]
        for at in self._offsets.blocks:
            view, index = self._offsets.values[at], self._index[at]
            now, then = (log_view(view, rate[index]) for rate in rates)
            # Differences are summed, in double precision: the sums themselves lose them.
            gain.index_add_(0, index, then.double() - now.double())
        gain += self.scales.alpha * (proposal - self.log_scale)
        gain -= self.scales.beta * (proposal.exp() - self.log_scale.exp())
        self.log_scale = torch.where(uniform.log() < gain, proposal, self.log_scale)

    def _rate(self, log_scale: Tensor) -> Tensor:
        rate = (log(self._unit) - log_scale).exp().clamp(1 / LARGEST_RATE, LARGEST_RATE)
        return rate.to(self._offsets.values.dtype)
