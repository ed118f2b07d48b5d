"""Stochastic gradient Langevin dynamics (Welling & Teh 2011).

    w' = w + (ε/2) ĝ(w) + √(εT) ξ,        ξ ~ N(0, I)

with ĝ an unbiased estimate of ∇ log p. As ε → 0 the stationary law is p(w)^{1/T}. At finite ε,
along a direction in which −log p is quadratic with curvature a and ĝ has variance s², the
variance is

    (T + εs²/4) / (a (1 − εa/4)),         stable iff εa < 4,

so the effective temperature is T_eff = (T + εs²/4) / (1 − εa/4).

Paper: Bayesian learning via stochastic gradient Langevin dynamics, ICML 2011.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ppl_fe.inference.dynamics import Measured, Settings

hyperparameters: dict[str, float] = {}


class State(NamedTuple):
    """position (C, D)."""

    position: Tensor


def init(position: Tensor, noise: Tensor, settings: Settings) -> State:
    """Make a state of the position alone."""
    return State(position)


def step(state: State, gradient: Tensor, noise: Tensor, settings: Settings) -> State:
    """Take one Euler–Maruyama step."""
    step_size, temperature = settings["step_size"], settings["temperature"]
    drift = 0.5 * step_size * gradient
    return State(state.position + drift + (step_size * temperature).sqrt() * noise)


def tune(found: Measured, tolerance: float, step_size: Tensor | None = None) -> dict[str, Tensor]:
    """Choose the largest ε with T_eff ≤ (1 + tolerance) T along the stiffest direction."""
    if step_size is None:
        relative = found.noise / found.temperature + (1 + tolerance) * found.stiffest
        step_size = 4 * tolerance / relative
    return {"step_size": step_size}


def excess_temperature(curvature: Tensor, noise: Tensor, settings: Settings) -> Tensor:
    """Predict (1 + εs²/(4T)) / (1 − εa/4) − 1; infinite where the step is unstable."""
    step_size, temperature = settings["step_size"], settings["temperature"]
    left = 1 - step_size * curvature / 4
    excess = (1 + step_size * noise / (4 * temperature)) / left - 1
    return excess.where(left > 0, float("inf"))


def relaxation_steps(slowest: Tensor, settings: Settings) -> Tensor:
    """Predict 2/(εa): each step shrinks a displacement by 1 − εa/2."""
    return 2 / (settings["step_size"] * slowest)
