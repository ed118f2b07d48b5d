"""What every sampler of `dynamics/` is held against, worked out from its own `step` function.

On a Gaussian target a step is an affine map of its state for every sampler but two: SGNHT, whose
thermostat multiplies the momentum, and PSGLD while its metric still adapts. The map is read off
the step by applying it to basis vectors, so a new sampler joins with one entry in `SAMPLERS` and no
algebra. Everything runs on the dynamics themselves, in float64, with thousands of chains at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from exact import affine_stationary_covariance
from numpy.typing import NDArray
from torch import Tensor

from ppl_fe.inference.dynamics import Dynamics, baoab, psgld, sghmc, sgld, sgnht

Array = NDArray[np.float64]
Gradient = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Sampler:
    """Dynamics, its own settings at a given stiffest curvature, and what warm-up has learnt."""

    dynamics: Dynamics
    own: Callable[[float], Mapping[str, float]] = lambda stiffest: {}
    learnt: Callable[[Tensor], Mapping[str, Tensor]] = lambda curvatures: {}
    metric: Callable[[Tensor], Tensor] = torch.ones_like


def _square(curvatures: Tensor) -> Tensor:
    # The mean squared gradient at T = 1, times factors that keep the metric from being just right.
    return curvatures * torch.linspace(0.5, 2.0, len(curvatures), dtype=curvatures.dtype)


def _frozen_metric(curvatures: Tensor) -> Tensor:
    state = psgld.State(curvatures[None], _square(curvatures)[None])
    return psgld.metric(state, columns(psgld.hyperparameters))[0]


AFFINE = {
    "sgld": Sampler(sgld),
    "psgld": Sampler(
        psgld,
        lambda stiffest: {**psgld.hyperparameters, **psgld.after_warmup},
        lambda curvatures: {"square": _square(curvatures)[None]},
        _frozen_metric,
    ),
    "sghmc": Sampler(sghmc, lambda stiffest: {"friction": 0.3}),
    "sghmc at full friction": Sampler(sghmc, lambda stiffest: {"friction": 1.0}),
    "baoab": Sampler(baoab, lambda stiffest: {"friction": 0.7 * stiffest**0.5}),
}
SGNHT = Sampler(sgnht, lambda a: {"friction": 0.7 * a**0.5, "coupling": 0.1 * a})
SAMPLERS = {**AFFINE, "sgnht": SGNHT}


def columns(values: Mapping[str, float]) -> dict[str, Tensor]:
    """Settings as (1, 1) tensors, which broadcast over chains."""
    return {name: torch.full((1, 1), v, dtype=torch.float64) for name, v in values.items()}


def _diagonal(condition: float) -> Tensor:
    return torch.diag(torch.logspace(0.0, float(np.log10(condition)), 6, dtype=torch.float64))


def _correlated() -> Tensor:
    generator = torch.Generator().manual_seed(10)
    mixing = torch.randn(10, 10, generator=generator, dtype=torch.float64)
    return mixing @ mixing.T / 10 + 0.2 * torch.eye(10, dtype=torch.float64)


PRECISIONS = {
    "condition 1": _diagonal(1.0),
    "condition 100": _diagonal(100.0),
    "condition 10^4": _diagonal(1e4),
    "correlated, 10-d": _correlated(),
}


class Affine(NamedTuple):
    """x' = A x + B ξ + K e: x (M) the moving part of a state, e (D) an error of the gradient."""

    A: Array
    B: Array
    K: Array

    def stationary(self, s2: float = 0.0) -> Array:
        """(M, M) covariance, the gradient's errors having variance s² in every direction."""
        return affine_stationary_covariance(self.A, self.B @ self.B.T + s2 * self.K @ self.K.T)


@dataclass
class Case:
    """A sampler on the Gaussian of mean 0 and this precision, at εa = `stiffness` where stiffest.

    The stiffest curvature is that in the sampler's metric.
    """

    sampler: Sampler
    precision: Tensor
    stiffness: float
    temperature: float = 1.0
    settings: dict[str, Tensor] = field(init=False)
    fields: list[str] = field(init=False)

    def __post_init__(self) -> None:
        P = self.precision
        root = self.sampler.metric(P.diagonal()).sqrt()
        self.stiffest = torch.linalg.eigvalsh(root[:, None] * P * root).max().item()
        self.settings = columns(
            {
                "step_size": self.stiffness / self.stiffest,
                "temperature": self.temperature,
                **self.sampler.own(self.stiffest),
            }
        )
        probe = torch.linspace(1, 2, len(P), dtype=torch.float64)[None]
        before = self.start(probe)
        after = self.sampler.dynamics.step(before, probe, probe, self.settings)
        self.fields = [
            name
            for name in before._fields
            if not torch.equal(getattr(before, name), getattr(after, name))
        ]

    def start(self, position: Tensor, noise: Tensor | None = None) -> Any:
        """A state (C, ...) at these positions, as the sampler starts it after warm-up."""
        noise = torch.zeros_like(position) if noise is None else noise
        state = self.sampler.dynamics.init(position, noise, self.settings)
        learnt = self.sampler.learnt(self.precision.diagonal())
        return state._replace(**{name: v.expand_as(position) for name, v in learnt.items()})

    def step(self, state: Any, noise: Tensor, error: Tensor) -> Any:
        """One step with gradient −P w + error."""
        gradient = -state.position @ self.precision + error
        return self.sampler.dynamics.step(state, gradient, noise, self.settings)

    def join(self, state: Any) -> Tensor:
        """The moving fields side by side, (C, M); the position comes first."""
        return torch.cat([getattr(state, name) for name in self.fields], dim=-1)

    def split(self, x: Tensor) -> Any:
        """The state of these moving parts."""
        position = x[:, : len(self.precision)]
        state = self.start(position)
        widths = [getattr(state, name).shape[-1] for name in self.fields]
        return state._replace(**dict(zip(self.fields, torch.split(x, widths, -1), strict=True)))

    def affine(self) -> Affine:
        """The step as an affine map.

        Raises:
            ValueError: it is none.
        """
        D = len(self.precision)
        M = self.join(self.start(torch.zeros(1, D, dtype=torch.float64))).shape[-1]

        def applied(x: Tensor, noise: Tensor, error: Tensor) -> Tensor:
            return self.join(self.step(self.split(x), noise, error))

        basis = torch.eye(M + 2 * D, dtype=torch.float64)
        response = applied(*torch.split(basis, [M, D, D], -1))
        generator = torch.Generator().manual_seed(0)
        some = torch.randn(7, M + 2 * D, generator=generator, dtype=torch.float64)
        if not torch.allclose(applied(*torch.split(some, [M, D, D], -1)), some @ response, 1e-9):
            raise ValueError("the step is not an affine map of its state")
        A, B, K = (part.T.numpy() for part in torch.split(response, [M, D, D]))
        return Affine(A, B, K)

    def simulate(self, state: Any, num_steps: int, s2: float = 0.0, seed: int = 0) -> Any:
        """`num_steps` steps of every chain, gradient errors of variance s² included."""
        generator = torch.Generator().manual_seed(seed)
        shape = state.position.shape
        error = torch.zeros(shape, dtype=torch.float64)
        for _ in range(num_steps):
            noise = torch.randn(shape, generator=generator, dtype=torch.float64)
            if s2:
                error = s2**0.5 * torch.randn(shape, generator=generator, dtype=torch.float64)
            state = self.step(state, noise, error)
        return state

    def target(self) -> Array:
        """(D, D) covariance of p^{1/T}."""
        return self.temperature * np.linalg.inv(self.precision.numpy())

    def relative_error(self, covariance: Array) -> float:
        """Largest |variance / target − 1| over all directions of position space."""
        D = len(self.precision)
        root = np.linalg.cholesky(self.precision.numpy())
        ratio = root.T @ covariance[:D, :D] @ root / self.temperature
        return float(np.abs(np.linalg.eigvalsh(ratio) - 1).max())


def normal_draws(covariance: Array, num_chains: int, seed: int) -> Tensor:
    """(C, M) draws of N(0, covariance)."""
    root = torch.as_tensor(np.linalg.cholesky(covariance))
    generator = torch.Generator().manual_seed(seed)
    shape = (num_chains, len(covariance))
    return torch.randn(shape, generator=generator, dtype=torch.float64) @ root.T


def covariance_scores(x: Tensor, covariance: Array) -> Array:
    """(M, M) z scores of the second moments of C independent Gaussian draws of mean 0."""
    found = (x.T @ x / len(x)).numpy()
    variance = np.diag(covariance)
    error = np.sqrt((np.outer(variance, variance) + covariance**2) / len(x))
    return np.asarray((found - covariance) / error)


def thermostat_law(case: Case, num_chains: int, seed: int) -> Any:
    """SGNHT's state in the law of vanishing steps, N(w; 0, T/P) N(p; 0, T) N(z; f, κT/D)."""
    D = len(case.precision)
    position = normal_draws(case.target(), num_chains, seed)
    noise = normal_draws(np.eye(D + 1), num_chains, seed + 1)
    spread = (case.settings["coupling"] * case.temperature / D).sqrt() / case.settings["friction"]
    return case.start(position, noise[:, :D])._replace(thermostat=1 + spread * noise[:, D:])
