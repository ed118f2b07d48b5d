"""Where chains start: spread out more than the posterior, so that R-hat can see a bad warm-up."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ppl_fe.inference.chains import Chains
from ppl_fe.inference.density import Density
from ppl_fe.inference.full_data import full_data_sums
from ppl_fe.inference.metric import LinearMap

OVERDISPERSION = 2.0  # standard deviations of the posterior, as R-hat's derivation asks
NUM_PROBES = 16
MAX_TRIES = 100


def uniform_positions(density: Density, num_chains: int, seed: int, radius: float = 2.0) -> Tensor:
    """(C, D) starts uniform on (−2, 2) of unconstrained space, as Stan and Pyro's NUTS do.

    Raises:
        ValueError: no start with a finite log-density was found.
    """
    generator = torch.Generator(density.device).manual_seed(seed)
    shape = (density.num_parameters,)
    starts = []
    for chain in range(num_chains):
        own = tuple(value[chain] for value in density.chain_values)
        for _ in range(MAX_TRIES):
            uniform = torch.rand(
                shape, generator=generator, dtype=density.dtype, device=density.device
            )
            start = radius * (2 * uniform - 1)
            if torch.isfinite(density(start, None, own).log_density):
                starts.append(start)
                break
        else:
            raise ValueError(
                f"no start with a finite log-density in {MAX_TRIES} draws from "
                f"({-radius}, {radius}) on unconstrained space; give initial_params"
            )
    return torch.stack(starts)


def spread_out(
    center: Tensor,
    displacement: Tensor,
    predicted: Tensor,
    log_density: Callable[[Tensor], Tensor],
) -> Tensor:
    """(C, D) starts: centre + displacement, as far as the quadratic model it comes from holds.

    Each chain's displacement is halved until the log-density falls no more than predicted, within
    a tenth.

    Args:
        center, displacement: (C, D).
        predicted: (C,), the fall of the log-density that the model predicts.
        log_density: (C, D) -> (C,).
    """
    at_center = log_density(center)
    for _ in range(MAX_TRIES):
        too_far = ~(at_center - log_density(center + displacement) <= 1.1 * predicted + 1)
        if not too_far.any():
            break
        displacement = torch.where(too_far[:, None], 0.5 * displacement, displacement)
        predicted = torch.where(too_far, 0.25 * predicted, predicted)
    return center + displacement


def about_the_mode(density: Density, metric: LinearMap, seed: int) -> Tensor:
    """(C, D) starts at twice the posterior standard deviation that the metric predicts."""
    generator = torch.Generator(density.device).manual_seed(seed)
    u = OVERDISPERSION * torch.randn(
        metric.origin.shape, generator=generator, dtype=density.dtype, device=density.device
    )
    return spread_out(
        metric.origin,
        metric.to_displacement(u),
        0.5 * u.square().sum(-1),
        lambda positions: full_data_sums(density, positions).log_density,
    )


def overdispersed_positions(
    chains: Chains, center: Tensor, least_curvature: float, stiffest: Tensor, seed: int
) -> Tensor:
    """(C, D) starts at twice the posterior standard deviation that the curvature predicts.

    Each coordinate's curvature is that of −log p at the centre, by Hutchinson's estimate
    E[z ⊙ Hz] over random signs z, never below `least_curvature` (a localised posterior's γ).
    N(w*, I/γ) itself would start far outside the basin where γ is small.

    Curvature at a degenerate minimum misleads: there it is zero, and a step away it is not. So
    `spread_out` goes only as far as the quadratic model holds.

    Args:
        chains: give the density and its gradients; their state is not touched.
        center: (C, D), the mode of each chain's target.
        least_curvature: a lower bound on every coordinate's curvature.
        stiffest: (C, 1), the largest curvature, which sets the probes' length.
        seed: of probes and displacements.
    """
    generator = torch.Generator(center.device).manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(
            center.shape, generator=generator, dtype=center.dtype, device=center.device
        )

    length = 0.1 * stiffest.rsqrt()
    curvature = torch.zeros_like(center)
    for _ in range(NUM_PROBES):
        indices = chains.stream.indices()
        signs = normal().sign()
        forward = chains.evaluate(center + length * signs, indices).gradient
        backward = chains.evaluate(center - length * signs, indices).gradient
        curvature += signs * (backward - forward) / (2 * length * NUM_PROBES)
    curvature = curvature.clamp_min(least_curvature)
    displacement = OVERDISPERSION * normal() * curvature.rsqrt()
    indices = chains.stream.indices()
    return spread_out(
        center,
        displacement,
        0.5 * (curvature * displacement.square()).sum(-1),
        lambda positions: chains.evaluate(positions, indices).log_density,
    )
