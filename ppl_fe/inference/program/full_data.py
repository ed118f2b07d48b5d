"""Evaluate a density on all the data, exactly, through plates that subsample."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_fe.inference.program.density import Density, Indices, Tensors, Terms
from ppl_fe.inference.program.each_chain import over_chains
from ppl_fe.inference.program.trace import Subsample

ROWS_AT_ONCE, FEW_CHUNKS = 20_000, 100


def full_data_terms(
    density: Density,
    position: Tensor,
    chain_values: Tensors,
    tensors: Tensors,
    rows: tuple[Tensor, Indices] | None = None,
) -> Terms:
    """Evaluate one chain (D,) on all the data, whatever the plates' subsample sizes.

    Args:
        density: of the program.
        position: (D,).
        chain_values: of the chain.
        tensors: the program's.
        rows: weights (K,) and index sets (K, B) in place of all the data, which are the default.
    """
    if not density.subsamples:
        return density(position, None, chain_values, tensors)
    weights, chunks = weighted_chunks(density) if rows is None else rows
    each = over_chains(
        lambda subset: density(position, subset, chain_values, tensors),
        chunks,
        in_dims=(0,),
        vectorized=density.way.functional,
    )
    # float64 data under a float32 prior make the terms float64.
    return Terms(*(weights.to(values.dtype) @ values for values in each))


def full_data_sums(density: Density, positions: Tensor) -> Terms:
    """Evaluate positions (C, D) on all the data, part after part -> (C,) float64 terms."""
    total = Terms(*(torch.zeros(len(positions), dtype=torch.float64).to(density.device),) * 2)
    for part in parts(density, positions):

        def value(point: Tensor, own: Tensors, subset: Indices) -> Terms:
            return density(point, subset, own, density.tensors)

        with torch.no_grad():
            found = density.outside_steps(
                value, part.positions, part.chain_values, part.indices, in_dims=(0, 0, 0)
            )
        total = Terms(
            *(sum_ + part.weigh(new.double()) for sum_, new in zip(total, found, strict=True))
        )
    return total


class Part(NamedTuple):
    """G chunks of the data at C positions each, as many evaluations side by side.

    weights, G of them; positions (G·C, D); chain_values (G·C, ...); indices (G·C, B).
    """

    weights: list[float]
    positions: Tensor
    chain_values: Tensors
    indices: Indices

    def weigh(self, values: Tensor) -> Tensor:
        """Sum values (G·C, ...) over the chunks by their weights, in float64 -> (C, ...)."""
        each = values.reshape(len(self.weights), -1, *values.shape[1:])
        total = torch.zeros_like(each[0], dtype=torch.float64)
        for weight, value in zip(self.weights, each, strict=True):
            total += weight * value
        return total


def parts(density: Density, positions: Tensor) -> Iterator[Part]:
    """Cover the data at positions (C, D) by parts, in a few minibatches' memory.

    Where chunks are many and small, several go side by side: a call costs more than their rows.
    """
    weights, stacked = weighted_chunks(density)
    count = len(positions)
    rows = count * max((indices.shape[1] for indices in stacked), default=1)
    size = max(1, ROWS_AT_ONCE // rows) if len(weights) > FEW_CHUNKS else 1
    for start in range(0, len(weights), size):
        own = weights[start : start + size].tolist()
        group = len(own)
        yield Part(
            own,
            positions.repeat(group, 1),
            tuple(value.repeat(group, *[1] * (value.dim() - 1)) for value in density.chain_values),
            tuple(ix[start : start + size].repeat_interleave(count, 0) for ix in stacked),
        )


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
