"""Start trajectories about a centre that is given, w* of a local posterior, in its own metric."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_fe.inference.step.metric_factor import diagonal_factor, grouped
from ppl_fe.inference.step.trajectories import Trajectories
from ppl_fe.inference.warmup.curvature import SHORT, power_iteration
from ppl_fe.inference.warmup.starts import coordinate_curvatures, overdispersed

ITERATIONS = 10  # the largest curvature sets no more than the length of differences


def start_about_center(chains: Trajectories, least_curvature: float, seed: int) -> None:
    """Spread chains that stand at their centres, by the curvature there, which is their metric.

    The metric is diagonal at first; windows of warm-up learn the rest of it.

    Args:
        chains: at the centres, each group at its own.
        least_curvature: a lower bound on every direction's curvature, a localiser's γ.
        seed: of probes and displacements.
    """
    center = chains.position
    generator = torch.Generator(center.device).manual_seed(seed)

    def product(vector: Tensor, curvature: Tensor) -> Tensor:
        length = SHORT * curvature.rsqrt()
        forward = chains.evaluate(center + length * vector).gradient
        backward = chains.evaluate(center - length * vector).gradient
        return (backward - forward) / (2 * length)

    direction = torch.randn(
        center.shape, generator=generator, dtype=center.dtype, device=center.device
    )
    guess = torch.full_like(center[:, :1], least_curvature)
    stiffest, _ = power_iteration(product, direction, guess, ITERATIONS)
    found = coordinate_curvatures(
        center, lambda vector: product(vector, stiffest), least_curvature, generator
    )
    # The chains of a group have one centre, and each has measured there.
    means = [own.mean(0, keepdim=True).expand_as(own) for own in chains.groups(found)]
    chains.factor = grouped([diagonal_factor(own[0].rsqrt()) for own in means])
    chains.start_at(
        overdispersed(center, torch.cat(means), lambda w: chains.evaluate(w).log_density, generator)
    )
