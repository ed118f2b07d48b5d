"""Metropolis-adjusted Langevin trajectories, MALT (Riou-Durand & Vogrinc 2022).

A trajectory of L steps begins with a fresh velocity v ~ N(0, I) at an accepted position w. With the
metric's factor F (FFᵀ near the posterior covariance), step h and friction f a step is

    v ← c v + √(1 − c²) ξ                 O,  c = exp(−f h); left out before the first step
    v ← v + (h/2) Fᵀ∇log p(w)             B
    w ← w + h F v                         A
    v ← v + (h/2) Fᵀ∇log p(w)             B

and the energy error Δ adds up |v|²/2 − log p(w) after minus before each BAB, never that of O. The
end is accepted with probability min(1, exp(−Δ)); otherwise the chain stays at w. The target is p(w)
*exactly*, at every step size and metric that do not change on the way: a long step costs
acceptances, not truth. A trajectory that leaves the support, or on which the log-density is not
finite, is rejected.

Friction makes the length of a trajectory uncritical: without it (Hamiltonian Monte Carlo) a
direction whose period the trajectory meets does not mix at all.

Every step size leaves p as it is, and so do several in turn (`SCALES`).

Paper: Metropolis Adjusted Langevin Trajectories: a robust alternative to Hamiltonian Monte Carlo,
arXiv 2202.13230.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# In units of the whitened posterior, where every direction has about unit variance: a trajectory
# of a little more than a quarter period, and friction that halves its memory over the way.
TRAJECTORY_LENGTH, FRICTION = 1.7, 1.0
# By which the step is multiplied, one trajectory after the other: a neck is entered by the short
# ones, and the far ends of a heavy tail, where nothing bends, are crossed by the long ones.
SHORT, LONG = 0.125, 8.0
SCALES = (1.0, 1.0, 1.0, 1.0, SHORT, 1.0, 1.0, 1.0, 1.0, LONG)
# Nats. The error goes with the square of the step, so that of a short one is next to nothing.
LOST_ENERGY, LOST_BY_SHORT = 1000.0, 10.0


class State(NamedTuple):
    """Where chains stand on a trajectory; what follows from the position was evaluated there.

    position, velocity, gradient (C, D); log_density, log_likelihood (C,); energy_error Δ (C,), of
    the steps so far.
    """

    position: Tensor
    velocity: Tensor
    gradient: Tensor
    log_density: Tensor
    log_likelihood: Tensor
    energy_error: Tensor


def refreshed(velocity: Tensor, noise: Tensor, decay: Tensor) -> Tensor:
    """Take the step O: c v + √(1 − c²) ξ, with c (C, 1); c = 0 draws the velocity afresh."""
    return decay * velocity + (1 - decay * decay).sqrt() * noise


def energy(velocity: Tensor, log_density: Tensor) -> Tensor:
    """Compute |v|²/2 − log p(w), (C,)."""
    return 0.5 * velocity.square().sum(-1) - log_density


def acceptance(end: State) -> Tensor:
    """Compute min(1, exp(−Δ)), (C,); 0 where anything is not finite."""
    finite = end.log_density.isfinite() & end.gradient.isfinite().all(-1)
    chance = torch.exp(-end.energy_error.clamp_min(0.0))
    return torch.where(finite & end.energy_error.isfinite(), chance, torch.zeros_like(chance))


def diverged(end: State, scale: float = 1.0) -> Tensor:
    """Say of which trajectories (C,) the energy is lost: Δ above 1000 nats, and finite.

    In a funnel's neck, narrower than the step, that happens; where the step fits it does not. The
    threshold is that of Stan (Betancourt 2017, arXiv 1701.02434, section 6.2). A trajectory that
    leaves the support has met an end of the density, and no neck.

    Args:
        end: of the trajectories.
        scale: of their step; below 1 (the default) ten nats are enough.
    """
    most = LOST_ENERGY if scale >= 1 else LOST_BY_SHORT
    return end.energy_error.isfinite() & (end.energy_error > most)


def accept(start: State, end: State, uniform: Tensor) -> State:
    """Go on from the end where `uniform` (C,) is below its acceptance, else from the start."""
    taken = uniform < acceptance(end)
    pairs = zip(end, start, strict=True)
    return State(*(torch.where(taken.reshape(-1, *(1,) * (a.dim() - 1)), a, b) for a, b in pairs))
