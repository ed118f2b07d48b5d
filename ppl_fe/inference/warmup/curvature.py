"""Curvatures of −log p and the gradient noise along the stiffest, by the chains' own gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_fe.inference.dynamics import Dynamics, Preconditioned, Settings
from ppl_fe.inference.step.chains import Chains

FIRST_ITERATIONS, LATER_ITERATIONS = 20, 4
NUM_NOISE_DRAWS = 8
# Posterior standard deviations over which gradients are differenced: short enough for a derivative,
# long enough to average over the kinks of a piecewise linear network.
SHORT = 0.1
# Before the chains have shown their slowest direction, assume a condition number of this.
ASSUMED_CONDITION = 100.0
LARGEST_CONDITION = 1e8
MOST_WATCHED = 1000  # coordinates whose variance is followed to find the slowest direction
LEAST_WATCHED = 10  # positions before a variance is believed


def power_iteration(
    product: Callable[[Tensor, Tensor], Tensor],
    direction: Tensor,
    curvature: Tensor,
    iterations: int,
) -> tuple[Tensor, Tensor]:
    """Find the largest curvature |vᵀHv| and its direction by repeated products with H.

    A product that is zero changes nothing: at a degenerate minimum there is no stiffest direction
    yet, or this minibatch does not have it.

    Args:
        product: (v, curvature so far) -> Hv for unit vectors v, of the shape of `direction`.
        direction: (..., D), where to start; used as memory.
        curvature: (..., 1), a first guess, returned where every product is zero.
        iterations: number of products.

    Returns:
        Curvature (..., 1), and Hv (..., D), which points along the direction.

    Example:
        >>> H = torch.tensor([[3.0, 1.0], [1.0, 3.0]])
        >>> start, guess = torch.tensor([1.0, 0.0]), torch.ones(1)
        >>> curvature, _ = power_iteration(lambda v, _: H @ v, start, guess, 10)
        >>> round(curvature.item(), 3)
        4.0
    """
    tiny = torch.finfo(direction.dtype).tiny
    for _ in range(iterations):
        direction /= torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
        moved = product(direction, curvature)
        found = torch.linalg.vecdot(direction, moved)[..., None].abs()
        flat = found <= tiny
        curvature = torch.where(flat, curvature, found)
        torch.where(flat, direction, moved, out=direction)
        del moved  # before the next product needs its memory
    return curvature, direction


class Stiffest(NamedTuple):
    """curvature (C, 1) along direction (C, D), not normalised, in the sampler's metric."""

    curvature: Tensor
    direction: Tensor


def metric_scale(chains: Chains) -> Tensor:
    """Return √G (C, D), in whose coordinates w/√G the sampler has no metric; else ones (C, 1)."""
    dynamics = chains.dynamics
    if isinstance(dynamics, Preconditioned):
        return dynamics.metric(chains.state, chains.settings).sqrt()
    return torch.ones_like(chains.state.position[:, :1])


def stiffest(chains: Chains, before: Stiffest | None = None) -> Stiffest:
    """Find the largest curvature at each chain's position by power iteration on H = −∇² log p.

    Hessian-vector products are differences of the same traced gradient.

    Args:
        chains: give positions, gradients and metric; their state is not touched.
        before: an earlier result, from which few iterations are enough. Default none.
    """
    position = chains.state.position
    if before is None:
        generator = torch.Generator(position.device).manual_seed(len(position))
        direction = torch.randn(
            position.shape, generator=generator, dtype=position.dtype, device=position.device
        )
    else:
        direction = before.direction.clone()
    scale = metric_scale(chains)

    def product(vector: Tensor, curvature: Tensor) -> Tensor:
        length = SHORT * curvature.rsqrt()
        ahead = length * scale * vector
        return scale * _change(chains, position, ahead) / (2 * length)

    iterations = FIRST_ITERATIONS if before is None else LATER_ITERATIONS
    guess = torch.ones_like(position[:, :1])
    return Stiffest(*power_iteration(product, direction, guess, iterations))


def hessian_product(
    chains: Chains, center: Tensor, curvature: Tensor
) -> Callable[[Tensor], Tensor]:
    """Give v (C, D) -> Hv with the Hessian H of −log p at a centre, of an estimate on minibatches.

    Args:
        chains: have the gradients.
        center: (C, D), in the chains' own coordinates.
        curvature: (C, 1), the largest, which sets the length of differences.
    """
    length = SHORT * curvature.rsqrt()
    return lambda vector: _change(chains, center, length * vector) / (2 * length)


def _change(chains: Chains, position: Tensor, ahead: Tensor) -> Tensor:
    """Difference the gradients of −log p (C, D) ahead of positions and behind, on one minibatch."""
    indices = chains.stream.indices()
    forward = chains.evaluate(position + ahead, indices).gradient
    backward = chains.evaluate(position - ahead, indices).gradient
    return backward - forward


def noise_variance(chains: Chains, found: Stiffest) -> Tensor:
    """Estimate the gradient's variance (C, 1) over minibatches, along the stiffest direction."""
    norm = torch.linalg.vector_norm(found.direction, dim=-1, keepdim=True)
    along = metric_scale(chains) * found.direction / norm
    draws = [(chains.fresh_gradient() * along).sum(-1) for _ in range(NUM_NOISE_DRAWS)]
    variance: Tensor = torch.stack(draws).var(0)
    return variance[:, None]


class SlowestDirection:
    """Estimates the smallest curvature: 1/variance of the widest coordinate of recent positions.

    Args:
        chains: whose positions are watched.
        known: a lower bound on the curvature that is known, and taken as it is (a localised
            posterior's γ).
        every: steps between the positions watched.
        num_groups: chains are looked at together within equal consecutive groups.
    """

    def __init__(self, chains: Chains, known: float | None, every: int, num_groups: int) -> None:
        self.chains, self.known, self.every, self.num_groups = chains, known, every, num_groups
        size = chains.state.position.shape[1]
        generator = torch.Generator().manual_seed(size)
        self._coordinates = torch.randperm(size, generator=generator)[:MOST_WATCHED]
        self._positions: list[Tensor] = []

    def watch(self, step: int) -> None:
        """Remember the chains' positions, if this step is one to remember."""
        if self.known is None and step % self.every == 0:
            self._positions.append(self.chains.state.position[:, self._coordinates])

    def forget(self) -> None:
        """Start again: the chains' coordinates have changed."""
        self._positions.clear()

    def state(self) -> dict[str, Tensor]:
        """Give what `restore` takes: the positions remembered."""
        return {"positions": torch.stack(self._positions)} if self._positions else {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Remember the positions of a `state`."""
        self._positions = [*state.get("positions", ())]

    def curvature(self, stiffest: Tensor) -> Tensor:
        """Estimate the smallest curvature (C, 1), given the largest (C, 1).

        From the last third of the positions; before there are enough of them, a condition number
        is assumed.
        """
        scale = metric_scale(self.chains)
        if self.known is not None:
            return self.known * scale.amin(-1, keepdim=True).square()
        recent = self._positions[2 * len(self._positions) // 3 :]
        if len(recent) < LEAST_WATCHED:
            return stiffest / ASSUMED_CONDITION
        draws = torch.stack(recent)  # (K, C, D); the chains of a group share one estimate
        # A chain that blew up is left out of the result, and must not mistune the others.
        draws = draws.where(draws.isfinite().all(-1).all(0)[:, None], torch.nan)
        grouped = draws.reshape(len(recent), self.num_groups, -1, draws.shape[-1])
        centred = grouped - grouped.nanmean(dim=(0, 2), keepdim=True)
        if scale.shape[-1] > 1:
            scale = scale[:, self._coordinates]
        centred = centred / scale.reshape(self.num_groups, -1, scale.shape[-1])
        widest = centred.square().nanmean(dim=(0, 2)).amax(-1)
        slowest = (1 / widest).repeat_interleave(grouped.shape[2])[:, None]
        slowest = torch.minimum(slowest, stiffest)
        return torch.maximum(slowest, stiffest / LARGEST_CONDITION)


def largest_stable_step(dynamics: Dynamics, curvature: Tensor, settings: Settings) -> Tensor:
    """Find the ε (C, 1) up to which the sampler's prediction of its own temperature is finite.

    Stability does not depend on T; at T = 0 the ratio T_eff/T that shows it would be undefined.
    """
    warm = {**settings, "temperature": torch.ones_like(settings["temperature"])}
    finite = torch.finfo(curvature.dtype).max
    return largest_step_within(dynamics, curvature, torch.zeros_like(curvature), warm, finite)


def largest_step_within(
    dynamics: Dynamics, curvature: Tensor, noise: Tensor, settings: Settings, tolerance: float
) -> Tensor:
    """Find the largest ε (C, 1), up to the present one, of a predicted excess within `tolerance`.

    By bisection over twelve decades below the present step size, for any dynamics.

    Args:
        dynamics: predict the excess temperature.
        curvature: (C, 1), along the stiffest direction.
        noise: (C, 1), variance of the gradient along it.
        settings: (C, 1) each, with the present step size.
        tolerance: the largest excess T_eff/T − 1.
    """

    def within(step_size: Tensor) -> Tensor:
        tried = {**settings, "step_size": step_size}
        return dynamics.excess_temperature(curvature, noise, tried) <= tolerance

    present = settings["step_size"]
    high = present.log()
    low = high - 12 * torch.log(torch.full_like(high, 10.0))
    for _ in range(50):
        middle = 0.5 * (low + high)
        below = within(middle.exp())
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.where(within(present), present, low.exp())
