"""Choose where chains start: wider than the posterior, so that R-hat can see a bad warm-up.

`uniform_positions` needs nothing known. From there `about_modes` descends, and `about_the_mode`
uses the dense metric's mode; `overdispersed_positions` starts about a centre that is given. Those
three spread out by the curvature that they find, as far as it predicts the log-density's fall.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isfinite
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_fe.inference.program.density import Density, Indices
from ppl_fe.inference.program.full_data import full_data_sums, weighted_chunks
from ppl_fe.inference.step.chains import Chains
from ppl_fe.inference.step.dense_metric import MOST_PARAMETERS, LinearMap
from ppl_fe.inference.step.gradients import Batch, minibatch
from ppl_fe.inference.warmup.curvature import hessian_product
from ppl_fe.l_bfgs import l_bfgs

OVERDISPERSION = 2.0  # standard deviations of the posterior, as R-hat's derivation assumes
NUM_PROBES = 16
MAX_TRIES = 100
MOST_ROWS = 10_000  # a mode of so many is within √(N/n) posterior sd of that of all N
MOST_DESCENTS, MOST_ITERATIONS = 16, 200
ARRIVED = 0.5  # nats that the quadratic model at the end still promises

Array = NDArray[np.float64]
Energy = Callable[[Array], tuple[float, Array]]


class Starts(NamedTuple):
    """Where chains start (C, D), and the modes (C, D) they start about."""

    position: Tensor
    mode: Tensor


def uniform_positions(density: Density, num_chains: int, seed: int, radius: float = 2.0) -> Tensor:
    """Draw starts (C, D) uniform on (−2, 2) of unconstrained space, as Stan and Pyro's NUTS do.

    Args:
        density: must be finite at a start.
        num_chains: C.
        seed: of the draws.
        radius: half the width. Default 2.

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


def about_modes(density: Density, far: Tensor, seed: int) -> Starts:
    """Descend from each far start (C, D) by itself, then spread out about what is found.

    L-BFGS on all the data, or on 10⁴ rows drawn once; the displacement is twice the posterior
    standard deviation that the Hessian at the first mode found predicts. Chains that descend to
    different modes stay apart, which R-hat shows. A chain that finds no mode (a funnel has none)
    keeps its far start, and so does every chain of more than a thousand parameters. Of many chains
    sixteen descend, and the others share what they find.

    Args:
        density: the target.
        far: (C, D), where to descend from.
        seed: of rows and displacements.
    """
    if density.num_parameters > MOST_PARAMETERS:
        return Starts(far, far)
    energy = _energy(density, some_rows(density, seed))
    modes = far.double().cpu().numpy().copy()
    found = [_descend(energy, start) for start in modes[:MOST_DESCENTS]]
    first = next((mode for mode in found if mode is not None), None)
    if first is None:
        return Starts(far, far)
    u = OVERDISPERSION * np.random.default_rng(seed).standard_normal(far.shape)
    for chain in range(len(far)):
        mode = found[chain % len(found)]
        if mode is None:
            u[chain] = 0
        else:
            modes[chain] = mode.position
    displacement, predicted = u @ _root(energy, first).T, 0.5 * np.square(u).sum(1)

    def log_density(positions: Tensor) -> Tensor:
        return torch.tensor([-energy(w)[0] for w in positions.numpy()])

    center, away, fall = map(torch.from_numpy, (modes, displacement, predicted))
    return Starts(spread_out(center, away, fall, log_density).to(far), center.to(far))


def about_the_mode(density: Density, metric: LinearMap, seed: int) -> Tensor:
    """Draw starts (C, D) at twice the posterior standard deviation that the metric predicts."""
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
    """Draw starts (C, D) at twice the posterior standard deviation that the curvature predicts.

    Args:
        chains: have the density and its gradients; their state is not touched.
        center: (C, D), the mode of each chain's target.
        least_curvature: a lower bound on every coordinate's curvature.
        stiffest: (C, 1), the largest curvature, which sets the probes' length.
        seed: of probes and displacements.
    """
    generator = torch.Generator(center.device).manual_seed(seed)
    product = hessian_product(chains, center, stiffest)
    curvature = coordinate_curvatures(center, product, least_curvature, generator)
    indices = chains.stream.indices()
    return overdispersed(
        center,
        curvature,
        lambda positions: chains.evaluate(positions, indices).log_density,
        generator,
    )


def coordinate_curvatures(
    center: Tensor,
    product: Callable[[Tensor], Tensor],
    least_curvature: float,
    generator: torch.Generator,
) -> Tensor:
    """Estimate the curvature of −log p along each coordinate at the centre, (C, D).

    By Hutchinson's estimate E[z ⊙ Hz] over random signs z, and never below `least_curvature` (a
    localised posterior's γ).

    Args:
        center: (C, D).
        product: v (C, D) -> Hv, with the Hessian H at the centre.
        least_curvature: a lower bound.
        generator: of the probes z.
    """
    curvature = torch.zeros_like(center)
    for _ in range(NUM_PROBES):
        signs = _normal(center, generator).sign()
        curvature += signs * product(signs) / NUM_PROBES
    return curvature.clamp_min(least_curvature)


def overdispersed(
    center: Tensor,
    curvature: Tensor,
    log_density: Callable[[Tensor], Tensor],
    generator: torch.Generator,
) -> Tensor:
    """Draw starts (C, D) at twice the standard deviation that curvatures (C, D) predict.

    N(w*, I/γ) itself would start far outside the basin where γ is small.

    Args:
        center: (C, D), the mode of each chain's target.
        curvature: (C, D), of −log p.
        log_density: (C, D) -> (C,).
        generator: of the displacements.
    """
    displacement = OVERDISPERSION * _normal(center, generator) * curvature.rsqrt()
    predicted = 0.5 * (curvature * displacement.square()).sum(-1)
    return spread_out(center, displacement, predicted, log_density)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def spread_out(
    center: Tensor,
    displacement: Tensor,
    predicted: Tensor,
    log_density: Callable[[Tensor], Tensor],
) -> Tensor:
    """Displace starts (C, D) from a centre, as far as the displacement's quadratic model holds.

    Each chain's displacement is halved until the log-density falls no more than predicted, within
    a tenth: at a degenerate minimum the curvature is zero, and a step away it is not.

    Args:
        center: (C, D).
        displacement: (C, D).
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


class _Mode(NamedTuple):
    """position (D,), and one standard deviation of each coordinate (D,) as far as L-BFGS knows."""

    position: Array
    sd: Array


def _descend(energy: Energy, start: Array) -> _Mode | None:
    """Find the mode downhill of a start, or None where L-BFGS has not arrived at one."""
    found = l_bfgs(
        energy, start, most_iterations=MOST_ITERATIONS, least_fall=1e-10, least_slope=1e-8
    )
    inverse: Array = found.hess_inv.todense()
    promised = 0.5 * found.jac @ inverse @ found.jac
    if not (isfinite(found.fun) and promised < ARRIVED):
        return None
    return _Mode(found.x, np.sqrt(inverse.diagonal()))


def _root(energy: Energy, mode: _Mode) -> Array:
    """Factor the inverse Hessian at the mode as RRᵀ, R (D, D), from differences of gradients.

    Directions that bend down, or not at all, are taken by the size of their curvature.
    """
    steps = 0.1 * np.diag(mode.sd)
    ahead = [energy(mode.position + step)[1] for step in steps]
    behind = [energy(mode.position - step)[1] for step in steps]
    scaled = 5 * (np.array(ahead) - behind) * mode.sd  # in coordinates of about unit curvature
    sizes, axes = np.linalg.eigh(0.5 * (scaled + scaled.T))
    sizes = np.maximum(abs(sizes), 1e-6 * abs(sizes).max())
    root: Array = mode.sd[:, None] * axes / np.sqrt(sizes)
    return root


def _energy(density: Density, rows: tuple[Tensor, Indices]) -> Energy:
    """Return a function for −log p and its gradient on the rows, in float64 sums."""
    weights, subsets = rows
    plain = minibatch(density)

    def energy(position: Array) -> tuple[float, Array]:
        w = torch.from_numpy(position).to(density.device, density.dtype).expand(len(weights), -1)
        with torch.no_grad():
            at = plain(w, Batch(subsets, (), density.tensors), None)
        value = -float(weights @ at.log_density.double())
        gradient = -(weights @ at.gradient.double()).cpu().numpy()
        if not (isfinite(value) and np.isfinite(gradient).all()):
            return inf, np.zeros_like(gradient)
        return value, gradient

    return energy


def some_rows(density: Density, seed: int) -> tuple[Tensor, Indices]:
    """Choose weights (K,) and index sets (K, B): all the data, or minibatches of 10⁴ rows.

    Args:
        density: the target.
        seed: of the rows.
    """
    weights, subsets = weighted_chunks(density)
    num_minibatches = max(1, MOST_ROWS // subsets[0].shape[1])
    if len(weights) > num_minibatches:
        generator = torch.Generator(density.device).manual_seed(seed)
        picked = [
            torch.randint(
                plate.size,
                (num_minibatches, plate.subsample_size),
                generator=generator,
                device=density.device,
            )
            for plate in density.subsamples
        ]
        weights, subsets = weights.new_full((num_minibatches,), 1 / num_minibatches), tuple(picked)
    return weights.double(), subsets
