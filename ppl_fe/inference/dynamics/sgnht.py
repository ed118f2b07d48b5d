"""Stochastic gradient Nosé–Hoover thermostat (Ding et al. 2014), by a symmetric splitting.

A friction z, one a chain, rises while the momenta are hotter than T and falls while they are
colder, and so takes up gradient noise of unknown size. With h = √ε, friction f, coupling κ:

    p ← p + h ĝ(w)                                                  B
    w ← w + (h/2) p                                                 A
    z ← z + (h/2) κ (|p|²/D − T)                                    D
    p ← exp(−zh) p + √(f T (1 − exp(−2zh))/z) ξ                     O
    z ← z + (h/2) κ (|p|²/D − T)                                    D
    w ← w + (h/2) p                                                 A

As ε → 0 the law of (w, p, z) is p(w)^{1/T} N(p; 0, T) N(z; f, κT/D), and gradient noise of equal
variance s² in every direction merely moves the mean of z by hs²/(2T). The paper has κ = 1 and an
Euler step, whose temperature is off at order h; this splitting (Leimkuhler & Shang's BADODAB) is
off at order h² = ε. With κ = 0 it is `baoab`, draw for draw. The three variables are coupled by
|p|², so the stationary law at finite ε is not Gaussian and no closed form of it is known.

One thermostat sees the mean over all directions. A direction noisier than the mean stays too hot,
by at most BAOAB's excess, which is reached when one of many directions has all the noise; what is
predicted and tuned here is that bound.

Papers: Bayesian sampling using stochastic gradient thermostats, NeurIPS 2014; Adaptive thermostats
for noisy gradient systems, SISC 2016.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ppl_fe.inference.dynamics import Measured, Settings, baoab

hyperparameters = {"friction": 1.0, "coupling": 1.0}

excess_temperature = baoab.excess_temperature
relaxation_steps = baoab.relaxation_steps
kinetic_temperature = baoab.kinetic_temperature


class State(NamedTuple):
    """position (C, D), momentum (C, D), thermostat z/f (C, 1).

    Relative to the friction, so that an automatic friction may change in warm-up without heat.
    """

    position: Tensor
    momentum: Tensor
    thermostat: Tensor


def init(position: Tensor, noise: Tensor, settings: Settings) -> State:
    """Draw momenta from their stationary law N(0, T); the thermostat is at its mean z = f."""
    momentum = settings["temperature"].sqrt() * noise
    return State(position, momentum, torch.ones_like(settings["friction"]))


def step(state: State, gradient: Tensor, noise: Tensor, settings: Settings) -> State:
    """Take one step of the splitting."""
    h, temperature = settings["step_size"].sqrt(), settings["temperature"]
    friction = settings["friction"]
    kicked = state.momentum + h * gradient
    rate = 0.5 * h * settings["coupling"] / friction
    thermostat = state.thermostat + rate * (_mean_square(kicked) - temperature)
    damping = thermostat * friction * h
    # (1 − exp(−2zh))/(2zh) has a limit at z = 0, and z may be negative for a while.
    still = damping == 0
    share = -torch.expm1(-2 * damping) / torch.where(still, torch.ones_like(damping), 2 * damping)
    share = torch.where(still, torch.ones_like(share), share)
    thermal = (2 * friction * h * temperature * share).sqrt() * noise
    refreshed = torch.exp(-damping) * kicked + thermal
    thermostat = thermostat + rate * (_mean_square(refreshed) - temperature)
    return State(state.position + 0.5 * h * (kicked + refreshed), refreshed, thermostat)


def _mean_square(momentum: Tensor) -> Tensor:
    return momentum.square().mean(-1, keepdim=True)


def tune(found: Measured, tolerance: float, step_size: Tensor | None = None) -> dict[str, Tensor]:
    """Choose BAOAB's step and friction, and κ so that the thermostat is as fast as friction.

    Its frequency is √(2κT). κ = f²/(2T) makes the law of z/f independent of every unit; the
    frequency stays below that of the stiffest direction at BAOAB's own step.
    """
    tuned = baoab.tune(found, tolerance, step_size)
    fastest = baoab.STIFFNESS / tuned["step_size"]
    frequency = torch.minimum(tuned["friction"].square(), fastest)
    return {**tuned, "coupling": frequency / (2 * found.temperature)}
