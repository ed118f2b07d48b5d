"""Measure how stiff a log-likelihood is at a network's weights, by minibatch gradients alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_fe.finetuning.flat_gradient import GradientParts
from ppl_fe.finetuning.flat_weights import WorkingCopy
from ppl_fe.finetuning.objective import Batch
from ppl_fe.inference.warmup.curvature import (
    LATER_ITERATIONS,
    NUM_NOISE_DRAWS,
    SHORT,
    power_iteration,
)

FIRST_ITERATIONS, NUM_PROBES = 12, 4
UNHEEDED = 1e-3  # share of the weights whose noisy estimate may exceed `largest`
SAMPLED = 10**5  # weights looked at for that share; a sort of all would take three more vectors


class Stiffness(NamedTuple):
    """Curvature and gradient noise of N̂ times the mean log-likelihood, in 1/weight².

    largest: the largest curvature plus the gradient's variance s² along its direction, or `along`
    of all but a thousandth of the weights, whichever is larger.
    along: (D + padding,), a + s² of each weight.
    direction: (D + padding,), bfloat16, the stiffest, to start the next measurement from.
    """

    largest: float
    along: Tensor
    direction: Tensor


Differentiate = Callable[[Batch], tuple[float, GradientParts]]


def measure(
    working: WorkingCopy,
    differentiate: Differentiate,
    write: Callable[[], None],
    batches: Iterator[Batch],
    noisy: Iterator[Batch] | None,
    data_size: float,
    generator: torch.Generator,
    *,
    before: Tensor | None = None,
) -> Stiffness:
    """Estimate curvature and gradient noise at the present weights, which are restored on return.

    The largest curvature comes from power iteration, Hessian-vector products from differences of
    gradients on one minibatch. s²_i is the variance over eight minibatches: noisy, but right on
    average, and the sampler's correction is linear in it. Few products do not give the curvatures
    a_i of single weights, but their sum over a tensor (Hutchinson 1990): it is shared out in
    proportion to s²_i, since curvature and gradient noise are both proportional to the Fisher
    information near a good fit, and evenly where gradients have no noise.

    Args:
        working: the network at the present weights.
        differentiate: gives a batch's loss and the gradient whose noise counts, at the weights of
            `working`; products with the Hessian take that of `working`, as they have no noise of
            the gradient's own.
        write: writes the present weights into the working copy.
        batches: minibatches for the products.
        noisy: fresh minibatches, between which the gradient varies; None where it does not.
        data_size: N̂, the number of data that the mean log-likelihood is multiplied by.
        generator: of the directions.
        before: direction of an earlier measurement, for a shorter iteration. Default none.

    Raises:
        DivergedError: a loss or gradient is not finite nearby.
    """
    size, dtype = working.network.num_parameters, working.weights.dtype
    if before is None:
        direction = torch.zeros_like(working.weights)
        direction[:size].normal_(generator=generator)
    else:
        direction = before.to(dtype)

    def product(vector: Tensor, curvature: Tensor) -> Tensor:
        length = SHORT * curvature.item() ** -0.5
        batch, moved = next(batches), torch.zeros_like(working.weights)
        with working.in_full_precision():
            for ahead in (length, -length):
                write()
                working.weights.add_(vector, alpha=ahead)
                working.differentiate(batch)[1].add_to(moved, 1 if ahead > 0 else -1)
        return moved.mul_(data_size / (2 * length))

    iterations = FIRST_ITERATIONS if before is None else LATER_ITERATIONS
    guess = direction.new_tensor([data_size], dtype=torch.float64)
    curvature, direction = power_iteration(product, direction, guess, iterations)
    # Only projections on it follow, so bfloat16 is enough; the memory peak comes next.
    direction = direction.div_(torch.linalg.vector_norm(direction)).to(torch.bfloat16)
    traces = dict.fromkeys(working.network.names, 0.0)
    probe = torch.zeros_like(direction, dtype=torch.int8)  # signs
    for _ in range(NUM_PROBES):
        probe[:size].bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
        moved = product(probe, curvature).mul_(probe)
        for name, where in working.network.slices.items():
            traces[name] += moved[where].sum().item() / NUM_PROBES
        del moved
    write()
    del probe
    largest = curvature.item()
    noise, noise_along = torch.zeros_like(working.weights), 0.0
    if noisy is not None:
        noise_along = _add_noise(noise, differentiate, noisy, data_size, direction)
    for name, where in working.network.slices.items():
        part = noise[where]
        trace, total = max(traces[name], 0.0), part.sum().item()
        curvatures = part * (trace / total) if total > 0 else trace / len(part)
        part += torch.as_tensor(curvatures).clamp_max(largest)
    sample = noise[: size : max(1, size // SAMPLED)]
    most = sample.kthvalue(max(1, round((1 - UNHEEDED) * len(sample)))).values.item()
    return Stiffness(max(largest + noise_along, most), noise, direction)


def _add_noise(
    squares: Tensor,
    differentiate: Differentiate,
    batches: Iterator[Batch],
    data_size: float,
    direction: Tensor,
) -> float:
    """Estimate s² along the direction, and of each weight, which is added to (D + padding,)."""
    total, along = torch.zeros_like(squares), []
    for _ in range(NUM_NOISE_DRAWS):
        gradient = differentiate(next(batches))[1]
        along.append(data_size * gradient.dot(direction))
        gradient.add_to(total, data_size)
        gradient.add_squares_to(squares, data_size**2)
        del gradient
    # Plain sums save a vector; digits are lost only where the noise hardly counts.
    squares.addcmul_(total, total, value=-1 / NUM_NOISE_DRAWS).clamp_min_(0)
    squares.div_(NUM_NOISE_DRAWS - 1)
    return float(torch.tensor(along, dtype=torch.float64).var())
