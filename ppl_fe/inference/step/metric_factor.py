"""A metric as a factor F with FFᵀ near the posterior covariance: dense, or diagonal and low-rank.

Both are learnt from draws *and gradients* by minimising the Fisher divergence between the whitened
posterior and N(0, I), as nutpie does (Seyboldt et al. 2026, arXiv 2603.18845): the best FFᵀ is the
geometric mean of the draws' covariance and the inverse of the gradients' covariance. Where −log p
is quadratic this is exact from D + 1 draws on, whatever law they have, since the gradients tell the
curvature and not only the spread of chains that may not have spread yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

MOST_DENSE = 200  # parameters: D² numbers, and D × D decompositions in warm-up
MOST_AXES = 32  # of a low-rank factor
FLATTEST, CUTOFF = 1e-12, 1.5  # share of an eigenvalue that counts; ratio from which an axis pays
PRIOR_DRAWS = 5.0  # that the present metric counts for, and one a parameter more


class Factor(Protocol):
    """F, as the step needs it; a NamedTuple of tensors, which the compiled step takes as inputs."""

    def forward(self, velocity: Tensor) -> Tensor:
        """Map velocities (C, D) to directions of positions, F v."""

    def transpose(self, gradient: Tensor) -> Tensor:
        """Map gradients (C, D) to whitened coordinates, Fᵀ g."""

    def dual(self, direction: Tensor) -> Tensor:
        """Map a whitened direction v (D,) to F⁻ᵀ v, whose product with F v is |v|²."""

    def refined(self, positions: Tensor, gradients: Tensor) -> tuple[Self, float]:
        """Learn from draws (S, C, D) of all chains and the gradients of log p there.

        Returns:
            The factor, and by how much it changed: the largest ratio of two standard deviations of
            one direction, in whitened coordinates, from 1 on.
        """


class DenseFactor(NamedTuple):
    """F itself (D, D)."""

    factor: Tensor

    def forward(self, velocity: Tensor) -> Tensor:
        """As in `Factor`."""
        return velocity @ self.factor.mT

    def transpose(self, gradient: Tensor) -> Tensor:
        """As in `Factor`."""
        return gradient @ self.factor

    def dual(self, direction: Tensor) -> Tensor:
        """As in `Factor`."""
        solved: Tensor = torch.linalg.solve(self.factor.mT.double(), direction.double())
        return solved.to(direction)

    def refined(self, positions: Tensor, gradients: Tensor) -> tuple[DenseFactor, float]:
        """As in `Factor`; shrunk towards the present metric, so that few draws do no harm."""
        positions, gradients = positions.flatten(0, -2), gradients.flatten(0, -2)
        factor = self.factor.double()
        u = torch.linalg.solve(factor, (positions - positions.mean(0)).double().mT).mT
        g = gradients.double() @ factor
        values, axes = _geometric_mean(u, g - g.mean(0), PRIOR_DRAWS + u.shape[1])
        stretch = values.sqrt()
        new = factor @ ((axes * stretch) @ axes.mT)
        return DenseFactor(new.to(self.factor)), _largest_ratio(stretch)

    @staticmethod
    def stacked(factors: Sequence[DenseFactor]) -> DenseFactor:
        """Put the factors of G groups into one, (G, D, D)."""
        return DenseFactor(torch.stack([one.factor for one in factors]))

    def at(self, group: int) -> DenseFactor:
        """Take one of those that were stacked."""
        return DenseFactor(self.factor[group])


class LowRankFactor(NamedTuple):
    """F = diag(s)(I + A diag(r − 1) Aᵀ): scale s (D,), orthonormal A (D, K), stretch r (K,)."""

    scale: Tensor
    axes: Tensor
    stretch: Tensor

    def forward(self, velocity: Tensor) -> Tensor:
        """As in `Factor`."""
        return self.scale * self._stretched(velocity, self.stretch - 1)

    def transpose(self, gradient: Tensor) -> Tensor:
        """As in `Factor`."""
        return self._stretched(self.scale * gradient, self.stretch - 1)

    def dual(self, direction: Tensor) -> Tensor:
        """As in `Factor`."""
        return self._stretched(direction, 1 / self.stretch - 1) / self.scale

    def refined(self, positions: Tensor, gradients: Tensor) -> tuple[LowRankFactor, float]:
        """As in `Factor`; scales first, then the axes along which draws and gradients differ."""
        positions, gradients = positions.flatten(0, -2), gradients.flatten(0, -2)
        x = (positions - positions.mean(0)).double()
        g = (gradients - gradients.mean(0)).double()
        count, prior = len(x), PRIOR_DRAWS
        spread, steepness = x.square().sum(0), g.square().sum(0)
        known = self.scale.double()
        # Shrunk towards the present scales, in whose units both variances are near one.
        spread = (spread / known**2 + prior) / (count + prior)
        steepness = (steepness * known**2 + prior) / (count + prior)
        scale = known * (spread / steepness) ** 0.25
        u, whitened = x / scale, g * scale
        # Only what the draws or the gradients span can differ from the identity.
        _, _, along = torch.linalg.svd(torch.cat([u, whitened]), full_matrices=False)
        basis = along[: min(len(along), 2 * MOST_AXES)].mT
        values, axes = _geometric_mean(u @ basis, whitened @ basis, prior + basis.shape[1])
        order = values.log().abs().argsort(descending=True)[: self.axes.shape[1]]
        stretch, axes = values[order].sqrt(), (basis @ axes)[:, order]
        pays = (stretch.log().abs() > torch.tensor(CUTOFF).log() / 2).to(stretch)
        stretch = 1 + pays * (stretch - 1)
        missing = self.axes.shape[1] - len(order)
        pad = torch.nn.functional.pad
        new = LowRankFactor(
            scale.to(self.scale),
            pad(axes, (0, missing)).to(self.scale),
            pad(stretch, (0, missing), value=1.0).to(self.scale),
        )
        return new, _largest_ratio(scale / known)

    @staticmethod
    def stacked(factors: Sequence[LowRankFactor]) -> LowRankFactor:
        """Put the factors of G groups into one, scales (G, 1, D) and stretches (G, 1, K)."""
        scale, axes, stretch = (torch.stack(parts) for parts in zip(*factors, strict=True))
        return LowRankFactor(scale[:, None], axes, stretch[:, None])

    def at(self, group: int) -> LowRankFactor:
        """Take one of those that were stacked."""
        return LowRankFactor(self.scale[group, 0], self.axes[group], self.stretch[group, 0])

    def _stretched(self, values: Tensor, more: Tensor) -> Tensor:
        axes = self.axes.to(values)
        return values + ((values @ axes) * more) @ axes.mT


class GroupedFactor(NamedTuple):
    """A factor for each of G equal consecutive groups of chains, which have targets of their own.

    stacked: of them all, its tensors with G in front.
    """

    stacked: DenseFactor | LowRankFactor

    def forward(self, velocity: Tensor) -> Tensor:
        """As in `Factor`."""
        return self.stacked.forward(self._by_group(velocity)).reshape(velocity.shape)

    def transpose(self, gradient: Tensor) -> Tensor:
        """As in `Factor`."""
        return self.stacked.transpose(self._by_group(gradient)).reshape(gradient.shape)

    def dual(self, direction: Tensor) -> Tensor:
        """As in `Factor`, but one for each group (G, D)."""
        return torch.stack([self.at(group).dual(direction) for group in range(self.num_groups)])

    def refined(self, positions: Tensor, gradients: Tensor) -> tuple[GroupedFactor, float]:
        """As in `Factor`, of each group from its own chains; the largest change of them."""
        parts = (values.tensor_split(self.num_groups, 1) for values in (positions, gradients))
        own = enumerate(zip(*parts, strict=True))
        each = [self.at(group).refined(*seen) for group, seen in own]
        stacked = _stacked([factor for factor, _ in each])
        return GroupedFactor(stacked), max(change for _, change in each)

    @property
    def num_groups(self) -> int:
        """G."""
        return len(self.stacked[0])

    def at(self, group: int) -> DenseFactor | LowRankFactor:
        """Take the factor of one group."""
        return self.stacked.at(group)

    def _by_group(self, values: Tensor) -> Tensor:
        return values.reshape(self.num_groups, -1, values.shape[-1])


Metric = DenseFactor | LowRankFactor | GroupedFactor


def grouped(factors: Sequence[DenseFactor | LowRankFactor]) -> Metric:
    """Make one metric of those of the groups of chains, all of one kind."""
    return factors[0] if len(factors) == 1 else GroupedFactor(_stacked(factors))


def _stacked(factors: Sequence[DenseFactor | LowRankFactor]) -> DenseFactor | LowRankFactor:
    return factors[0].stacked(factors)  # type: ignore[arg-type]  # all of one kind


def group_of(metric: Metric, group: int) -> DenseFactor | LowRankFactor:
    """Take the metric of one group of chains."""
    return metric.at(group) if isinstance(metric, GroupedFactor) else metric


def identity_factor(position: Tensor) -> DenseFactor | LowRankFactor:
    """Make the factor that changes nothing, for positions (C, D): dense while D allows it."""
    return diagonal_factor(torch.ones_like(position[0]))


def diagonal_factor(scale: Tensor) -> DenseFactor | LowRankFactor:
    """Make the factor of the standard deviations (D,), from which more is to be learnt."""
    size = len(scale)
    if size <= MOST_DENSE:
        return DenseFactor(torch.diag(scale))
    return LowRankFactor(scale, scale.new_zeros(size, MOST_AXES), scale.new_ones(MOST_AXES))


def _largest_ratio(ratios: Tensor) -> float:
    return float(ratios.log().abs().max().exp())


def _geometric_mean(u: Tensor, g: Tensor, prior: float) -> tuple[Tensor, Tensor]:
    """Decompose the S with S·cov(g)·S = cov(u), both shrunk towards I: values (D,), axes (D, D)."""
    identity = torch.eye(u.shape[1], dtype=u.dtype, device=u.device)
    spread, steepness = ((m.mT @ m + prior * identity) / (len(m) + prior) for m in (u, g))
    root, inverse = _power(steepness, 0.5), _power(steepness, -0.5)
    mean = inverse @ _power(root @ spread @ root, 0.5) @ inverse
    values, axes = torch.linalg.eigh(0.5 * (mean + mean.mT))
    return values.clamp_min(FLATTEST), axes


def _power(matrix: Tensor, exponent: float) -> Tensor:
    values, axes = torch.linalg.eigh(0.5 * (matrix + matrix.mT))
    raised: Tensor = (axes * values.clamp_min(FLATTEST * values[-1]) ** exponent) @ axes.mT
    return raised
