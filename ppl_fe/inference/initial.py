"""Where chains start: spread out more than the posterior, so that R-hat can see a bad warm-up."""

from __future__ import annotations

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


def about_the_mode(density: Density, metric: LinearMap, seed: int) -> Tensor:
    """(C, D) starts at twice the posterior standard deviation that the metric predicts.

    Each chain's displacement is halved until the log-density on all the data falls no more than
    the quadratic model says it should, within a tenth.
    """
    generator = torch.Generator(density.device).manual_seed(seed)
    u = OVERDISPERSION * torch.randn(
        metric.origin.shape, generator=generator, dtype=density.dtype, device=density.device
    )
    at_mode = full_data_sums(density, metric.origin).log_density
    for _ in range(MAX_TRIES):
        fall = at_mode - full_data_sums(density, metric.to_position(u)).log_density
        too_far = ~(fall <= 0.55 * u.square().sum(-1) + 1)
        if not too_far.any():
            break
        u = torch.where(too_far[:, None], 0.5 * u, u)
    return metric.to_position(u)


def overdispersed_positions(
    chains: Chains, center: Tensor, least_curvature: float, stiffest: Tensor, seed: int
) -> Tensor:
    """(C, D) starts at twice the posterior standard deviation that the curvature predicts.

    Each coordinate's curvature is that of −log p at the centre, by Hutchinson's estimate
    E[z ⊙ Hz] over random signs z, never below `least_curvature` (a localised posterior's γ).
    N(w*, I/γ) itself would start far outside the basin where γ is small.

    Curvature at a degenerate minimum misleads: there it is zero, and a step away it is not. So each
    chain's displacement is halved until the log-density falls no more than its quadratic
    model says it should, within a tenth.

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
    at_center = chains.evaluate(center, indices).log_density
    for _ in range(MAX_TRIES):
        fall = at_center - chains.evaluate(center + displacement, indices).log_density
        predicted = 0.5 * (curvature * displacement.square()).sum(-1)
        too_far = ~(fall <= 1.1 * predicted + 1)
        if not too_far.any():
            break
        displacement = torch.where(too_far[:, None], 0.5 * displacement, displacement)
    return center + displacement
