"""The largest curvature of −log p and the gradient noise along it, by the chains' own gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ppl_fe.inference.dynamics import Dynamics, Preconditioned, Settings
from ppl_fe.inference.step.chains import Chains

FIRST_ITERATIONS, LATER_ITERATIONS = 20, 4
NUM_NOISE_DRAWS = 8


class Stiffest(NamedTuple):
    """curvature (C, 1) along direction (C, D), not normalised, in the sampler's metric."""

    curvature: Tensor
    direction: Tensor


def metric_scale(chains: Chains) -> Tensor:
    """√G (C, D), in whose coordinates w/√G the sampler has no metric; (C, 1) ones without."""
    dynamics = chains.dynamics
    if isinstance(dynamics, Preconditioned):
        return dynamics.metric(chains.state, chains.settings).sqrt()
    return torch.ones_like(chains.state.position[:, :1])


def stiffest(chains: Chains, before: Stiffest | None = None) -> Stiffest:
    """|vᵀHv| at the chains' positions after a few power iterations on H = −∇² log p.

    Hessian-vector products are differences of the same traced gradient; the iteration starts from
    what was found `before`.
    """
    position = chains.state.position
    iterations = LATER_ITERATIONS
    if before is None:
        generator = torch.Generator(position.device).manual_seed(len(position))
        direction = torch.randn(
            position.shape, generator=generator, dtype=position.dtype, device=position.device
        )
        iterations = FIRST_ITERATIONS
    else:
        direction = before.direction
    curvature = torch.ones_like(position[:, :1])
    scale = metric_scale(chains)
    for _ in range(iterations):
        direction = direction / torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
        indices = chains.stream.indices()
        # A tenth of a posterior standard deviation along v: short enough for a derivative,
        # long enough to average over the kinks of a piecewise linear network.
        length = 0.1 * curvature.rsqrt()
        ahead = length * scale * direction
        forward = chains.evaluate(position + ahead, indices).gradient
        backward = chains.evaluate(position - ahead, indices).gradient
        product = scale * (backward - forward) / (2 * length)
        curvature = (direction * product).sum(-1, keepdim=True).abs()
        # A flat start (a degenerate minimum) has no stiffest direction yet.
        flat = curvature <= torch.finfo(curvature.dtype).tiny
        direction = torch.where(flat, direction, product)
        curvature = torch.where(flat, torch.ones_like(curvature), curvature)
    return Stiffest(curvature, direction)


def noise_variance(chains: Chains, found: Stiffest) -> Tensor:
    """(C, 1): variance over minibatches of the gradient along the stiffest direction."""
    norm = torch.linalg.vector_norm(found.direction, dim=-1, keepdim=True)
    along = metric_scale(chains) * found.direction / norm
    draws = [(chains.fresh_gradient() * along).sum(-1) for _ in range(NUM_NOISE_DRAWS)]
    variance: Tensor = torch.stack(draws).var(0)
    return variance[:, None]


def largest_stable_step(dynamics: Dynamics, curvature: Tensor, settings: Settings) -> Tensor:
    """(C, 1): the ε up to which the sampler's own prediction of its temperature is finite.

    Stability does not depend on T; at T = 0 the ratio T_eff/T that shows it would be undefined.
    """
    warm = {**settings, "temperature": torch.ones_like(settings["temperature"])}
    finite = torch.finfo(curvature.dtype).max
    return largest_step_within(dynamics, curvature, torch.zeros_like(curvature), warm, finite)


def largest_step_within(
    dynamics: Dynamics, curvature: Tensor, noise: Tensor, settings: Settings, tolerance: float
) -> Tensor:
    """(C, 1): the largest ε, up to the present one, whose predicted excess is within `tolerance`.

    By bisection over twelve decades below the present step size, for any dynamics.
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
