"""A dense metric: chains move in whitened coordinates u, where w = c + L u.

Any sampler can run in u as it is: the gradient is Lᵀ∇log p(c + Lu), and the target the same
posterior. With L Lᵀ near the posterior covariance all curvatures are near one, whatever the
condition number in w, and SGLD in u is SGLD in w with the dense preconditioner G = LLᵀ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_fe.inference.program.density import Density, Indices
from ppl_fe.inference.program.each_chain import gradient_of, hessian_of
from ppl_fe.inference.program.full_data import full_data_terms

MOST_PARAMETERS = 1000  # D² numbers a chain, and a D × D factorisation now and then
NEWTON_STEPS = 200
NUM_DRAWS, MOST_SHORT = 32, 1.0  # of the normal law about a mode; nats a coordinate
SHRINKAGE = 10.0  # and one a parameter: draws that the present metric counts for


class LinearMap(NamedTuple):
    """w = c + L u: origin c (C, D), factor L (C, D, D)."""

    origin: Tensor
    factor: Tensor

    def to_position(self, u: Tensor) -> Tensor:
        """Map u (C, D) to w (C, D)."""
        return self.origin + self.to_displacement(u)

    def to_displacement(self, u: Tensor) -> Tensor:
        """Map a difference of two u to that of their positions, L u."""
        return (self.factor @ u[..., None])[..., 0]

    def to_gradient(self, gradient: Tensor) -> Tensor:
        """Map a gradient with respect to w to that with respect to u, Lᵀg."""
        return (self.factor.mT @ gradient[..., None])[..., 0]

    def from_position(self, w: Tensor) -> Tensor:
        """Undo `to_position`."""
        solved: Tensor = torch.linalg.solve(self.factor, (w - self.origin)[..., None])
        return solved[..., 0]

    def refine(self, u: Tensor, num_effective: float) -> LinearMap:
        """Return the map in whose coordinates draws u of all chains have unit covariance.

        The sample covariance is shrunk towards the identity, so that few draws, or many that
        hardly moved, leave the map as it was.

        Args:
            u: (S, D) draws.
            num_effective: how many independent ones they count for.
        """
        count = min(num_effective, len(u))
        prior = SHRINKAGE + u.shape[-1]
        identity = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device)
        seen = torch.cov(u.T).reshape(identity.shape)
        covariance = (count * seen + prior * identity) / (count + prior)
        root, failed = torch.linalg.cholesky_ex(covariance)
        if failed:  # of draws so far apart that their squares are not finite
            return self
        share = count / (count + prior)
        return LinearMap(
            self.to_position((share * u.mean(0)).expand_as(self.origin)), self.factor @ root
        )


def unit_map(start: Tensor) -> LinearMap:
    """Make the map that changes nothing, for positions (C, D), to be learnt from draws alone."""
    identity = torch.eye(start.shape[-1], dtype=start.dtype, device=start.device)
    return LinearMap(torch.zeros_like(start), identity.repeat(len(start), 1, 1))


def at_the_mode(
    density: Density, start: Tensor, rows: tuple[Tensor, Indices] | None = None
) -> LinearMap | None:
    """Find the map with c at a mode on unconstrained space, LLᵀ the inverse negative Hessian.

    Damped Newton steps (Levenberg-Marquardt) on all the data from the first chain's start, and one
    map for all chains. Directions in which −log p is flat or bends down get the size of their
    curvature, as in saddle-free Newton.

    Args:
        density: the target.
        start: (C, D) positions.
        rows: weights (K,) and index sets (K, B) in place of all the data, which are the default.

    Returns:
        None where there is no mode, or one that says nothing of the posterior, as the neck of a
        funnel does not: there the density is high and the volume is small.

    Raises:
        ValueError: more than a thousand parameters.
    """
    if density.num_parameters > MOST_PARAMETERS:
        raise ValueError(
            f"metric='dense' holds D² numbers, and the model has D = {density.num_parameters} "
            f"(at most {MOST_PARAMETERS}); use fe.PSGLD, whose metric is diagonal"
        )
    own = tuple(value[0] for value in density.chain_values)

    def energy(w: Tensor) -> Tensor:
        return -full_data_terms(density, w, own, density.tensors, rows).log_density

    functional = density.way.functional
    gradient = gradient_of(lambda w: (energy(w), ()), functional=functional)
    w, damping = start[0], 1.0
    with torch.no_grad():
        value = energy(w)
        for _ in range(NEWTON_STEPS):
            slope, _ = gradient(w)
            hessian = hessian_of(energy, w, functional=functional)
            if not hessian.isfinite().all():
                return None
            sizes, axes = curvatures(hessian, hessian.dtype)
            move = axes @ ((axes.T @ slope) / (sizes * (1 + damping)))
            there = energy(w - move)
            if torch.isfinite(there) and there <= value:
                gain, value, w = (value - there).item(), there, w - move
                damping = 0.1 * damping if damping > 1e-6 else 0.0
                if damping == 0 and gain < 1e-6:
                    break
            elif damping > 1e10:
                break
            else:
                damping = max(10 * damping, 1e-3)
        hessian = hessian_of(energy, w, functional=functional)
        if not hessian.isfinite().all():
            return None
        sizes, axes = curvatures(hessian, hessian.dtype)
        factor = axes * sizes.rsqrt()
        if not _describes(energy, w, factor):
            return None
    return LinearMap(w.expand_as(start).clone(), factor.expand(len(start), -1, -1).clone())


def _describes(energy: Callable[[Tensor], Tensor], mode: Tensor, factor: Tensor) -> bool:
    """Return whether a normal law N(mode, LLᵀ) lies where the density does, in most of its draws.

    It does not if in more than a quarter of them the density falls short of the law's by more than
    a nat a coordinate.
    """
    generator = torch.Generator(mode.device).manual_seed(len(mode))
    u = torch.randn(
        (NUM_DRAWS, len(mode)), generator=generator, dtype=mode.dtype, device=mode.device
    )
    fall = torch.stack([energy(w) for w in mode + u @ factor.T]) - energy(mode)
    short = fall - 0.5 * u.square().sum(-1) > MOST_SHORT * len(mode)
    return bool((short | ~fall.isfinite()).double().mean() <= 0.25)


def curvatures(hessian: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Decompose Hessians: sizes (..., D) and axes (..., D, D), |H| = axes⁻ᵀ diag(sizes) axes⁻¹.

    Scaled to a unit diagonal first: an eigenvalue is only as good as the rounding of the largest,
    and coordinates in different units differ by more than that.

    Args:
        hessian: (..., D, D).
        dtype: that it was computed in, whose rounding is the least size.
    """
    diagonal = hessian.diagonal(dim1=-2, dim2=-1).abs()
    scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()[..., None]
    values, vectors = torch.linalg.eigh(scale * hessian * scale.mT)
    sizes = values.abs()
    floor = sizes.shape[-1] * torch.finfo(dtype).eps * sizes.amax(-1, keepdim=True)
    return sizes.maximum(floor), scale * vectors
