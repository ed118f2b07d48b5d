"""Preconditioned SGLD with the second moment of RMSprop and Adam (Li et al. 2016).

    w ← w + (ε/2) G ĝ(w) + √(εT G) ξ,        ξ ~ N(0, I)
    G = 1 / (√(v / mean v) + δ)              the mean over the D coordinates
    v ← ρ v + (1 − ρ) ĝ²                     in warm-up; afterwards ρ = 1 and v stays

The paper's G is 1/(√v + λ). Dividing v by its mean makes G and the damping δ pure numbers, so
that ε means what it means for SGLD, however large the gradient of a sum over N data; it also
cancels the factor that Adam corrects for in its first steps, so that both optimisers' moments give
one G.

A G that follows the chain is a metric that depends on position, and without the paper's drift
Γ = Σ_j ∂G_ij/∂w_j the stationary law is wrong, the more so the smaller the step (Γ is left out in
practice). Here v is learnt during warm-up only. The sampling chain has a constant G: in the
coordinates u = w/√G it is exactly SGLD, Γ is zero, and the target is p(w)^{1/T} as ε → 0. With
curvature and gradient noise taken in u, everything in `sgld` about tuning and bias holds as it is.

A step uses the v of the steps before it, so G is independent of the minibatch it multiplies; before
the first gradient (or without warm-up) G = 1, which is SGLD.

Paper: Preconditioned stochastic gradient Langevin dynamics for deep neural networks, AAAI 2016.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ppl_fe.inference.dynamics import Settings, sgld

hyperparameters = {"decay": 0.99, "damping": 0.01}
after_warmup = {"decay": 1.0}  # v ← 1·v + 0·ĝ²: frozen, exactly, in the same graph

tune = sgld.tune
excess_temperature = sgld.excess_temperature
relaxation_steps = sgld.relaxation_steps


class State(NamedTuple):
    """position (C, D), square (C, D): the running mean v of the squared gradient."""

    position: Tensor
    square: Tensor


def init(position: Tensor, noise: Tensor, settings: Settings) -> State:
    """Make a state that has seen no gradient yet: G = 1."""
    return State(position, torch.zeros_like(position))


def metric(state: State, settings: Settings) -> Tensor:
    """Return the diagonal (C, D) of G that the next step uses."""
    mean = state.square.mean(-1, keepdim=True)
    seen = mean != 0  # a NaN counts as seen, and stays one
    relative = state.square / torch.where(seen, mean, torch.ones_like(mean))
    scaled = 1 / (relative.sqrt() + settings["damping"])
    return torch.where(seen, scaled, torch.ones_like(scaled))


def step(state: State, gradient: Tensor, noise: Tensor, settings: Settings) -> State:
    """Take an SGLD step in the metric, then update the moment for the next step's metric."""
    step_size, decay = settings["step_size"], settings["decay"]
    inverse = metric(state, settings)
    drift = 0.5 * step_size * inverse * gradient
    thermal = (step_size * settings["temperature"] * inverse).sqrt() * noise
    square = decay * state.square + (1 - decay) * gradient.square()
    return State(state.position + drift + thermal, square)
