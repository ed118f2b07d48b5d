"""Estimators of the gradient of a log-density, apart from the dynamics that use them.

Each is a pure function of (positions (C, D), index sets, chain values, tensors) and returns an
`Evaluation`; each combines with every sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ppl_fe.inference.density import Density, Indices
from ppl_fe.inference.full_data import full_data_terms

Tensors = tuple[Tensor, ...]


class Evaluation(NamedTuple):
    """gradient (C, D); log_density (C,); log_likelihood (C,), both at the same positions."""

    gradient: Tensor
    log_density: Tensor
    log_likelihood: Tensor


Estimator = Callable[[Tensor, Indices, Tensors, Tensors], Evaluation]


def minibatch(density: Density) -> Estimator:
    """ĝ(w) = ∇[log prior + (N/B) Σ_{i∈batch} log p(y_i | w)], unbiased for uniform index draws."""

    def estimate(
        position: Tensor, indices: Indices, chain_values: Tensors, tensors: Tensors
    ) -> Evaluation:
        gradient, terms = density.batched_gradient(
            density, position, indices, chain_values, tensors
        )
        return Evaluation(gradient, terms.log_density, terms.log_likelihood)

    return estimate


def full_data(density: Density) -> Estimator:
    """The exact gradient over minibatches that cover the data; the index sets are ignored."""

    def estimate(
        position: Tensor, indices: Indices, chain_values: Tensors, tensors: Tensors
    ) -> Evaluation:
        gradient, terms = density.batched_gradient(
            lambda point, _, own, data: full_data_terms(density, point, own, data),
            position,
            indices,
            chain_values,
            tensors,
        )
        return Evaluation(gradient, terms.log_density, terms.log_likelihood)

    return estimate


ESTIMATORS = {"minibatch": minibatch, "full_data": full_data}
