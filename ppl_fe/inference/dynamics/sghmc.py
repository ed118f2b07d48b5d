"""Stochastic gradient Hamiltonian Monte Carlo (Chen, Fox & Guestrin 2014).

With the friction α ∈ (0, 1] the share of the momentum that a step takes away,

    p ← (1 − α) p + (√ε/2) ĝ(w) + √(αT) ξ,        ξ ~ N(0, I)
    w ← w + √ε p

These are the paper's equations (15) for the velocity v = √ε p with learning rate η = ε/2, momentum
1 − α, no estimate of the gradient noise subtracted (its B̂ = 0) and a temperature; p keeps its scale
when ε changes, v does not. At full friction, α = 1, a step *is* an
SGLD step of the same ε, draw for draw; at T = 0 it is gradient descent with momentum. The target is
p(w)^{1/T} as ε → 0 at any fixed α. At finite ε, along a direction in which −log p is quadratic with
curvature a and ĝ has variance s², the variance is

    (T + εs²/(4α)) / (a (1 − εa/(4(2 − α)))),     stable iff εa < 4(2 − α).

So little friction halves the bias of discretisation and multiplies that of gradient noise by 1/α.

Paper: Stochastic gradient Hamiltonian Monte Carlo, ICML 2014.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ppl_fe.inference.dynamics import Measured, Settings

hyperparameters = {"friction": 0.1}


class State(NamedTuple):
    """position (C, D), momentum (C, D): the displacement of the last step over √ε."""

    position: Tensor
    momentum: Tensor


def init(position: Tensor, noise: Tensor, settings: Settings) -> State:
    """Draw momenta from their stationary law at small steps, N(0, T/(2 − α))."""
    kinetic = settings["temperature"] / (2 - settings["friction"])
    return State(position, kinetic.sqrt() * noise)


def step(state: State, gradient: Tensor, noise: Tensor, settings: Settings) -> State:
    """Move the momentum, then the position by the new momentum."""
    h, friction = settings["step_size"].sqrt(), settings["friction"]
    thermal = (friction * settings["temperature"]).sqrt() * noise
    momentum = (1 - friction) * state.momentum + 0.5 * h * gradient + thermal
    return State(state.position + h * momentum, momentum)


def kinetic_temperature(state: State, settings: Settings) -> Tensor:
    """Measure (2 − α)|p|²/D of each chain: p ~ N(0, T/(2 − α)) at small steps."""
    return (2 - settings["friction"][:, 0]) * state.momentum.square().mean(-1)


def tune(found: Measured, tolerance: float, step_size: Tensor | None = None) -> dict[str, Tensor]:
    """Choose the friction critical for an exact gradient, then the largest ε within tolerance.

    Critical is α = √(2εa_min), where the slowest direction relaxes in about 1/α steps. Gradient
    noise makes ε smaller still, and α more than critical for it: going after it would gain a factor
    of four at most, and a tiny friction forgives no error in a_min. For a step given by hand, α is
    critical, and as much more as keeps the noise's share εs²/(4αT) within the tolerance.
    """
    stiffest, slowest, noise, temperature = found
    relative = noise / temperature
    if step_size is not None:
        critical = (2 * step_size * slowest).sqrt()
        for_noise = step_size * relative / (4 * tolerance)
        return {"step_size": step_size, "friction": torch.maximum(critical, for_noise).clamp_max(1)}
    stiff = (1 + tolerance) * stiffest
    friction = (4 * (tolerance * slowest / stiff).sqrt()).clamp_max(1)  # ε = 8 tolerance/stiff
    step_size = 4 * tolerance / (relative / friction + stiff / (2 - friction))
    return {"step_size": step_size, "friction": friction}


def excess_temperature(curvature: Tensor, noise: Tensor, settings: Settings) -> Tensor:
    """Predict (1 + εs²/(4αT)) / (1 − εa/(4(2 − α))) − 1; infinite where unstable."""
    step_size, friction = settings["step_size"], settings["friction"]
    left = 1 - step_size * curvature / (4 * (2 - friction))
    excess = (1 + step_size * noise / (4 * friction * settings["temperature"])) / left - 1
    return excess.where(left > 0, float("inf"))


def relaxation_steps(slowest: Tensor, settings: Settings) -> Tensor:
    """Predict 1/(1 − |z|), z the larger root of z² − (2 − α − εa/2) z + 1 − α; SGLD's at α = 1."""
    friction, pull = settings["friction"], settings["step_size"] * slowest / 2
    below_critical = friction / (1 + (1 - friction).sqrt())
    discriminant = (friction + pull).square() - 4 * pull
    # Written without the difference 1 − |z|, which float32 cannot hold in slow directions.
    above_critical = 2 * pull / (friction + pull + discriminant.clamp_min(0).sqrt())
    return 1 / torch.where(discriminant < 0, below_critical, above_critical)
