"""Samplers as pure tensor steps, one file each, with its equation and its paper.

sgld.py   stochastic gradient Langevin dynamics
psgld.py  the same with a diagonal metric, learnt in warm-up
sghmc.py  stochastic gradient Hamiltonian Monte Carlo: momentum and friction
malt.py   trajectories of underdamped dynamics, accepted or rejected: exact at every step
sgnht.py  a thermostat that takes up gradient noise
baoab.py  underdamped Langevin dynamics, exact where −log p is quadratic; the default

A sampler is a module (or any object) with `hyperparameters`, `init` and `step`:

    init(position, noise, settings) -> State      position, noise (C, D)
    step(state, gradient, noise, settings) -> State

`gradient` is an unbiased estimate of the gradient of log p at `state.position`, `noise` is standard
normal, and `settings` maps "step_size", "temperature" and the sampler's own hyperparameters to
tensors of shape (C, 1), so that chains may differ. Three further functions state what is known of
the discretised chain in a direction of curvature a with gradient-noise variance s²: `tune` turns a
tolerance into settings, `excess_temperature` predicts T_eff/T − 1, and `relaxation_steps` how long
the slowest direction takes to forget its start. The step size ε is that of

    w ← w + (ε/2) gradient + √(εT) noise
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

Settings = Mapping[str, Tensor]


class State(Protocol):
    """A NamedTuple of tensors with a leading chain dimension; the position comes first."""

    @property
    def position(self) -> Tensor:
        """(C, D) positions on unconstrained space."""


class Measured(NamedTuple):
    """What warm-up has measured, (C, 1) each.

    Curvatures of −log p along the stiffest and the slowest direction, the gradient-noise variance
    s² along the stiffest, and the temperature T asked for.
    """

    stiffest: Tensor
    slowest: Tensor
    noise: Tensor
    temperature: Tensor


class Dynamics(Protocol):
    """The functions and settings of a sampler's file."""

    @property
    def hyperparameters(self) -> Mapping[str, float]:
        """The sampler's own settings beyond step size and temperature, with their defaults."""

    def init(self, position: Tensor, noise: Tensor, settings: Settings) -> Any:
        """Make a state at positions (C, D)."""

    def step(self, state: Any, gradient: Tensor, noise: Tensor, settings: Settings) -> Any:
        """Take one step."""

    def tune(
        self, found: Measured, tolerance: float, step_size: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Choose settings (C, 1), at most `tolerance` too hot along the stiffest direction.

        A `step_size` given by hand stays, and the rest is chosen for it.
        """

    def excess_temperature(self, curvature: Tensor, noise: Tensor, settings: Settings) -> Tensor:
        """Predict T_eff/T − 1 along a direction of this curvature and gradient-noise variance."""

    def relaxation_steps(self, slowest: Tensor, settings: Settings) -> Tensor:
        """Predict the steps in which a direction forgets its start by a factor e."""


@runtime_checkable
class WithMomentum(Dynamics, Protocol):
    """Dynamics with momenta, whose temperature can be measured, too."""

    def kinetic_temperature(self, state: Any, settings: Settings) -> Tensor:
        """Measure the momenta's temperature (C,), a mean of D squares; T as ε → 0."""


@runtime_checkable
class Preconditioned(Dynamics, Protocol):
    """Dynamics with a diagonal metric G, learnt in warm-up and constant afterwards."""

    @property
    def after_warmup(self) -> Mapping[str, float]:
        """Settings that take another value when warm-up ends, and thereby freeze the metric."""

    def metric(self, state: Any, settings: Settings) -> Tensor:
        """Return G (C, D) of the next step; `tune` and the rest get curvature and noise in w/√G."""
