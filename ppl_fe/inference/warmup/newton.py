"""Descend by damped Newton steps to where the posterior has its mass, and start chains about it.

The Hessian is exact and scaled to a unit diagonal, so that raw covariates (an intercept beside an
income in dollars) cost nothing, and it is made positive as in saddle-free Newton. On the way down
Laplace's approximation to the mass at a point,

    log p(w) + ½ log det |H(w)|⁻¹,

is followed, and the point of the largest is taken: at a mode they are one, and in a funnel, whose
density rises without end while its mass vanishes, it is the funnel's mouth.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ppl_fe.inference.program.density import Density, Tensors
from ppl_fe.inference.program.full_data import full_data_terms
from ppl_fe.inference.step.dense_metric import curvatures

MOST_STEPS, MOST_DAMPED = 100, 1e10
ARRIVED = 0.05  # nats that the quadratic model still promises
# Standard deviations between the mode and the point of most mass on the way to it.
NEAR, AT_THE_MODE = 2.0, 0.5
LOST = 10.0  # nats of mass below the best, and one a parameter, from which a descent is given up


class Descent(NamedTuple):
    """What descending found, each chain by itself, in float64.

    position (C, D); factor (C, D, D), whose square FFᵀ is the inverse of the Hessian made positive;
    mass (C,), the logarithm of Laplace's; away (C,), from the mode where the way ended, in standard
    deviations, infinite where it ended at none.
    """

    position: Tensor
    factor: Tensor
    mass: Tensor
    away: Tensor

    @property
    def at_mode(self) -> Tensor:
        """Say of each chain (C,) whether it is at a mode, or so near that this one is meant."""
        return self.away < NEAR

    def picked(self, which: list[int]) -> Descent:
        """Take those of some chains."""
        return Descent(*(values[which] for values in self))

    def with_lost_at_the_best(self) -> Descent:
        """Put chains whose descent ended where there is no mass to speak of at the best one.

        Such a mode is in no draw of the posterior, and a chain that begins in it spoils the metric
        and the step that are learnt from all chains.
        """
        best = self.mass.argmax()
        lost = self.mass < self.mass[best] - _lost(self.position.shape[1])
        return Descent(*(torch.where(_like(lost, x), x[best], x) for x in self))


class _Point(NamedTuple):
    """position (C, D) float64; value (C,) and slope (C, D) of −log p; sizes and axes of H."""

    position: Tensor
    value: Tensor
    slope: Tensor
    sizes: Tensor
    axes: Tensor

    def mass(self) -> Tensor:
        # axes⁻ᵀ diag(sizes) axes⁻¹ = |H|, and axes = diag(scale) Q with an orthogonal Q.
        root: Tensor = torch.linalg.slogdet(self.axes).logabsdet
        return root - 0.5 * self.sizes.log().sum(-1) - self.value

    def where(self, mask: Tensor, other: _Point) -> _Point:
        pairs = zip(self, other, strict=True)
        return _Point(*(torch.where(_like(mask, a), a, b) for a, b in pairs))


def descend(density: Density, start: Tensor, most_steps: int = MOST_STEPS) -> Descent | None:
    """Descend from every start (C, D), all chains side by side, on all the data.

    Args:
        density: the target.
        start: positions with a finite log-density.
        most_steps: Newton steps, 100 by default.

    Returns:
        What was found, or None where the program has no second derivative.
    """
    try:
        here = _point(density, start.double())
    except (RuntimeError, NotImplementedError):  # torch says no more than this
        return None
    best, damping = here, torch.ones_like(here.value)
    done = torch.zeros_like(here.value, dtype=torch.bool)
    arrived = done.clone()
    for _ in range(most_steps):
        inward = (here.axes.mT @ here.slope[..., None])[..., 0]
        promised = 0.5 * (inward.square() / here.sizes).sum(-1)
        shortened = inward / (here.sizes * (1 + damping[:, None]))
        move = (here.axes @ shortened[..., None])[..., 0]
        there = _point(density, here.position - move)
        better = (there.value <= here.value) & ~done  # false where not finite
        arrived |= better & (promised < ARRIVED)
        done |= arrived | (damping > MOST_DAMPED)
        here = there.where(better, here)
        less = torch.where(damping > 1e-6, 0.1 * damping, torch.zeros_like(damping))
        damping = torch.where(better, less, (10 * damping).clamp_min(1e-3))
        mass, most = here.mass(), best.mass()
        best = here.where(mass > most, best)
        done |= mass < most - _lost(start.shape[1])
        if done.all():
            break
    factor = best.axes * best.sizes.rsqrt()[:, None]
    away = torch.linalg.solve(factor, (here.position - best.position)[..., None])[..., 0]
    distance = torch.linalg.vector_norm(away, dim=-1).masked_fill(~arrived, torch.inf)
    return Descent(best.position, factor, best.mass(), distance)


def _lost(num_parameters: int) -> float:
    return LOST + num_parameters


def _like(mask: Tensor, values: Tensor) -> Tensor:
    """Shape a mask (C,) so that it picks among values (C, ...)."""
    return mask.reshape(-1, *(1,) * (values.dim() - 1))


def _point(density: Density, position: Tensor) -> _Point:
    """Evaluate −log p, its slope and its Hessian at positions (C, D)."""

    def one(w: Tensor, own: Tensors, tensors: Tensors) -> tuple[Tensor, Tensor, Tensor]:
        def slope(point: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            found, value = torch.func.grad_and_value(
                lambda z: -full_data_terms(density, z, own, tensors).log_density
            )(point)
            return found, (value, found)

        # Reverse over reverse: forward mode promotes dtypes in some densities.
        hessian, (value, gradient) = torch.func.jacrev(slope, has_aux=True)(w)
        return value, gradient, hessian

    with torch.no_grad():
        value, slope, hessian = density.over_chains(
            one,
            position.to(density.dtype),
            density.chain_values,
            density.tensors,
            in_dims=(0, 0, None),
        )
    value, slope, hessian = value.double(), slope.double(), hessian.double()
    finite = slope.isfinite().all(-1) & hessian.isfinite().all(-1).all(-1)
    value = torch.where(finite, value, torch.full_like(value, torch.inf))
    hessian = torch.where(finite[:, None, None], hessian, torch.eye(slope.shape[1]).to(hessian))
    sizes, axes = curvatures(0.5 * (hessian + hessian.mT), density.dtype)
    return _Point(position, value, slope, sizes, axes)
