"""Underdamped Langevin dynamics by the BAOAB splitting (Leimkuhler & Matthews 2013).

With h = √ε and c = exp(−f h), f the friction, one gradient a step:

    p ← p + h ĝ(w)                        B
    w ← w + (h/2) p                       A
    p ← c p + √((1 − c²) T) ξ             O
    w ← w + (h/2) p                       A

(two half kicks of neighbouring steps are joined, which leaves the law of w as it is). The target is
p(w)^{1/T}. Where −log p is quadratic and the gradient exact, the variance of w is *exactly* right
at every stable step (εa < 4): there is no discretisation bias to trade against speed. As f → ∞ a
step equals an SGLD step of the same ε with the noise averaged over two neighbours. Relaxation
takes about 1/√(εa_min) steps at f = 2√a_min where SGLD takes 2/(εa_min): the square root.

The price is sensitivity to gradient noise: a variance s² of ĝ raises the temperature to exactly

    T_eff/T = 1 + (εs²/4T) coth(f√ε/2) / (1 − εa/4),

against 1 + εs²/4T for SGLD's noise alone. The automatic friction keeps this under the tolerance.

Paper: Rational construction of stochastic numerical methods for molecular sampling, AMRX 2013.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ppl_fe.inference.dynamics import Measured, Settings

hyperparameters = {"friction": 1.0}

# εa along the stiffest direction. The harmonic bias is zero up to 4; this leaves room for curvature
# that grows along the chain, and keeps the O(ε) bias of anharmonic directions near a per cent
# (tests/statistical/test_normal_crossing.py).
STIFFNESS, UNSTABLE = 0.25, 4.0
MOST_DAMPED = 0.999  # tanh(f√ε/2) beyond which more friction changes nothing


class State(NamedTuple):
    """position (C, D), momentum (C, D)."""

    position: Tensor
    momentum: Tensor


def init(position: Tensor, noise: Tensor, settings: Settings) -> State:
    """Draw momenta from their stationary law N(0, T)."""
    return State(position, settings["temperature"].sqrt() * noise)


def step(state: State, gradient: Tensor, noise: Tensor, settings: Settings) -> State:
    """Take one step of the splitting."""
    h = settings["step_size"].sqrt()
    decay = torch.exp(-settings["friction"] * h)
    kicked = state.momentum + h * gradient
    refreshed = decay * kicked + ((1 - decay * decay) * settings["temperature"]).sqrt() * noise
    return State(state.position + 0.5 * h * (kicked + refreshed), refreshed)


def kinetic_temperature(state: State, settings: Settings) -> Tensor:
    """Measure |p|²/D of each chain, right after the momenta were refreshed."""
    return state.momentum.square().mean(-1)


def tune(
    found: Measured,
    tolerance: float,
    step_size: Tensor | None = None,
    stiffness: float = STIFFNESS,
) -> dict[str, Tensor]:
    """Choose ε = stiffness/a and critical friction; less and more where noise requires it.

    The noise bound on ε leaves coth(f√ε/2) ≥ 2 within the tolerance, so that some friction meets
    it. A step given by hand may be too long for that: then the friction is as good as infinite.
    """
    stiffest, slowest, noise, temperature = found
    room = 4 * temperature * tolerance * (1 - stiffness / 4)
    if step_size is None:
        step_size = torch.minimum(stiffness / stiffest, room / (2 * noise))  # no noise: infinity
    share = (step_size * noise / room).clamp_max(MOST_DAMPED)
    for_noise = 2 / step_size.sqrt() * torch.atanh(share)
    return {"step_size": step_size, "friction": torch.maximum(2 * slowest.sqrt(), for_noise)}


def excess_temperature(curvature: Tensor, noise: Tensor, settings: Settings) -> Tensor:
    """Predict (εs²/4T) coth(f√ε/2) / (1 − εa/4), exact; infinite where the step is unstable."""
    step_size, temperature = settings["step_size"], settings["temperature"]
    mixing = torch.tanh(settings["friction"] * step_size.sqrt() / 2)
    left = 1 - step_size * curvature / UNSTABLE
    excess = step_size * noise / (4 * temperature * mixing * left)
    return excess.where(left > 0, float("inf"))


def relaxation_steps(slowest: Tensor, settings: Settings) -> Tensor:
    """Predict the longer of 2/(f√ε) (momenta) and 2 tanh(f√ε/2)/(εa) (SGLD's as f → ∞)."""
    step_size, friction = settings["step_size"], settings["friction"]
    damping = friction * step_size.sqrt()
    return torch.maximum(2 / damping, 2 * torch.tanh(damping / 2) / (step_size * slowest))
