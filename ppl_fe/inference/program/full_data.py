"""Evaluate a density on all the data, exactly, through plates that subsample."""

from __future__ import annotations

import itertools
from math import prod

import torch
from torch import Tensor

from ppl_fe.inference.program.density import Density, Indices, Tensors, Terms
from ppl_fe.inference.program.each_chain import over_chains
from ppl_fe.inference.program.trace import Subsample


def full_data_terms(
    density: Density,
    position: Tensor,
    chain_values: Tensors,
    tensors: Tensors,
) -> Terms:
    """Evaluate one chain (D,) on all the data, whatever the plates' subsample sizes."""
    if not density.subsamples:
        return density(position, None, chain_values, tensors)
    weights, chunks = weighted_chunks(density)
    each = over_chains(
        lambda subset: density(position, subset, chain_values, tensors),
        chunks,
        in_dims=(0,),
        vectorized=density.way.functional,
    )
    # float64 data under a float32 prior make the terms float64.
    return Terms(*(weights.to(values.dtype) @ values for values in each))


def full_data_sums(density: Density, positions: Tensor) -> Terms:
    """Evaluate positions (C, D) on all the data, chunk after chunk -> (C,) float64 terms."""
    weights, stacked = weighted_chunks(density)
    total = Terms(*(torch.zeros(len(positions), dtype=torch.float64).to(density.device),) * 2)
    for number, weight in enumerate(weights.tolist()):
        subset = tuple(indices[number] for indices in stacked)

        def value(point: Tensor, own: Tensors, subset: Indices = subset) -> Terms:
            return density(point, subset, own, density.tensors)

        with torch.no_grad():
            part = density.outside_steps(value, positions, density.chain_values, in_dims=(0, 0))
        total = Terms(
            *(sum_ + weight * new.double() for sum_, new in zip(total, part, strict=True))
        )
    return total


def weighted_chunks(density: Density) -> tuple[Tensor, Indices]:
    """Cover the data: weights (K,) and index sets (K, B) whose weighted sum is exact.

    With whole chunks of B and a remainder of r, the remainder is padded by copies of datum 0, and
    a chunk of nothing but datum 0 is taken off again: weights B/N, ..., B/N, −(B−r)/N. They sum
    to one, so the prior comes out once. Several plates: all combinations; no plate: one empty set.
    """
    per_plate = [_chunks(plate, density.device) for plate in density.subsamples]
    combinations = list(itertools.product(*per_plate))
    weights = [prod((weight for weight, _ in chunks), start=1.0) for chunks in combinations]
    columns = zip(*((indices for _, indices in chunks) for chunks in combinations), strict=True)
    return (
        torch.tensor(weights, dtype=density.dtype, device=density.device),
        tuple(torch.stack(column) for column in columns),
    )


def _chunks(plate: Subsample, device: torch.device) -> list[tuple[float, Tensor]]:
    size, batch = plate.size, plate.subsample_size
    whole, rest = divmod(size, batch)
    order = torch.arange(size, device=device)
    chunks = [(batch / size, order[k * batch : (k + 1) * batch]) for k in range(whole)]
    if rest:
        zeros = torch.zeros(batch - rest, dtype=torch.long, device=device)
        chunks.append((batch / size, torch.cat([order[whole * batch :], zeros])))
        first = torch.zeros(batch, dtype=torch.long, device=device)
        chunks.append((-(batch - rest) / size, first))
    return chunks
