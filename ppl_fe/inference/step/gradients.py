"""Estimators of the gradient of a log-density, apart from the dynamics that use them.

Each is a pure function of (positions (C, D), `Batch`, anchor) and returns an `Evaluation`; each
combines with every sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_fe.inference.program.density import Data, Density, Indices, Tensors, Terms
from ppl_fe.inference.program.full_data import full_data_terms, parts
from ppl_fe.ranks import ranks, summed


class Batch(NamedTuple):
    """The data of one gradient: index sets into the tensors, and values that differ by chain."""

    indices: Indices
    chain_values: Tensors
    tensors: Data


class Evaluation(NamedTuple):
    """gradient (C, D); log_density (C,); log_likelihood (C,), all at the same positions."""

    gradient: Tensor
    log_density: Tensor
    log_likelihood: Tensor


class Anchor(NamedTuple):
    """Where control variates are taken: positions (C, D) and the exact evaluation there."""

    position: Tensor
    gradient: Tensor
    log_density: Tensor
    log_likelihood: Tensor


Estimator = Callable[[Tensor, Batch, Anchor | None], Evaluation]


def minibatch(density: Density) -> Estimator:
    """Estimate ĝ(w) = ∇[log prior + (N/B) Σ_{i∈batch} log p(y_i | w)], on uniform index sets."""
    return _gradient_of(density, density)


def full_data(density: Density) -> Estimator:
    """Estimate the gradient exactly, over chunks that cover the data; index sets are ignored."""
    return _gradient_of(
        density, lambda point, _, own, data: full_data_terms(density, point, own, data)
    )


def _gradient_of(density: Density, terms: Callable[..., Terms]) -> Estimator:
    def estimate(position: Tensor, batch: Batch, anchor: Anchor | None) -> Evaluation:
        gradient, found = density.batched_gradient(terms, position, *batch)
        return Evaluation(gradient, found.log_density, found.log_likelihood)

    return estimate


def control_variate(density: Density) -> Estimator:
    """Estimate ĝ(w) = ∇log p(ŵ) + [∇log p̂(w) − ∇log p̂(ŵ)], both terms on the same minibatch.

    Unbiased for every anchor ŵ; the variance falls with |w − ŵ|² (Baker et al. 2019, Control
    variates for stochastic gradient MCMC; Nagapetyan et al. 2017). The log-density and the
    log-likelihood are corrected in the same way. A step costs two gradients.
    """
    plain = minibatch(density)

    def estimate(position: Tensor, batch: Batch, anchor: Anchor | None) -> Evaluation:
        here = plain(position, batch, None)
        if anchor is None:  # no minibatches: nothing to correct
            return here
        there = plain(anchor.position, batch, None)
        exact = Evaluation(*anchor[1:])
        return Evaluation(*(a + (b - c) for a, b, c in zip(exact, here, there, strict=True)))

    return estimate


def accumulated(estimator: Estimator, num_micro_batches: int) -> Estimator:
    """Average the estimates on K micro-batches, one after another: index sets (C, K·B).

    The mean has the same law as one minibatch of K·B, in the memory of one of B.
    """

    def estimate(position: Tensor, batch: Batch, anchor: Anchor | None) -> Evaluation:
        parts = zip(*(ix.chunk(num_micro_batches, -1) for ix in batch.indices), strict=True)
        found = [estimator(position, batch._replace(indices=part), anchor) for part in parts]
        return Evaluation(*(torch.stack(values).mean(0) for values in zip(*found, strict=True)))

    return estimate


def shared(estimator: Estimator) -> Estimator:
    """Average the estimates of all ranks (`ppl_fe.ranks`), each on its part of the index sets.

    Of R ranks the index sets are (C, R·B); a loader's minibatches come as each rank's own rows. The
    mean has the same law as one minibatch of R·B, and every rank gets the same bits.
    """
    count, own = ranks()
    if count == 1:
        return estimator

    def estimate(position: Tensor, batch: Batch, anchor: Anchor | None) -> Evaluation:
        mine = tuple(indices.chunk(count, -1)[own] for indices in batch.indices)
        found = estimator(position, batch._replace(indices=mine), anchor)
        terms = torch.stack([found.log_density, found.log_likelihood], -1)
        total = summed(torch.cat([found.gradient, terms.to(found.gradient)], -1)) / count
        return Evaluation(total[:, :-2], *total[:, -2:].to(terms).unbind(-1))

    return estimate


def exact_evaluation(density: Density, position: Tensor) -> Evaluation:
    """Evaluate positions (C, D) on all the data, chunk after chunk, in a minibatch's memory.

    The sums are float64, as every later step inherits their error.
    """
    plain = minibatch(density)
    sums = [torch.zeros_like(position, dtype=torch.float64)] + [
        torch.zeros(len(position), dtype=torch.float64, device=position.device) for _ in range(2)
    ]
    with torch.no_grad():
        for part in parts(density, position):
            batch = Batch(part.indices, part.chain_values, density.tensors)
            for total, value in zip(sums, plain(part.positions, batch, None), strict=True):
                total += part.weigh(value)
    return Evaluation(*(total.to(position.dtype) for total in sums))


ESTIMATORS = {"minibatch": minibatch, "full_data": full_data, "control_variate": control_variate}
