"""The prior of a network's outputs when its weights are near a checkpoint: mean and covariance.

Near its weights w* a network's outputs on N data are about f(w*) + J(w − w*), J = ∂f/∂w there. With
w ~ N(w*, 1/γ) they have the mean f(w*) and the covariance JJᵀ/γ, the kernel of the tangents (Jacot
et al. 2018, Neural tangent kernel).

A fresh linear head h ~ N(0, 1/τ) on features φ(w) gives outputs of mean 0. The features being
linear in w, their covariance is exact, though their law is no longer Gaussian; it is the same for
every output and between two of them 0:

    Cov[f_i, f_j] = (φ_iᵀφ_j + tr(J_i J_jᵀ)/γ + 1)/τ,        J = ∂φ/∂w,  1 that of the bias.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap
from torch.utils import _pytree as pytree

from ppl_fe.data.sources import TensorData
from ppl_fe.free_energy.baselines.features import layer_inputs
from ppl_fe.networks.flat import FlatNetwork

MOST_NUMBERS = 2**28  # of tangents at a time, a GiB in float32; more data come block by block
MOST_OUTPUTS = 1_000  # N·K, the rows of the covariance
LEAST_PROBES = 8  # of the features, where the tangents of all of them would not fit


@dataclass(frozen=True)
class Tangents:
    """What does not depend on γ and τ.

    Attributes:
        outputs: (N, K) their mean.
        shape: of one output.
        moving: (NK, NK) covariance of the outputs at γ = 1; of a fresh head (N, N) of the features.
        num_tangents: R, of a datum: what was differentiated by the weights.
        staying: (N, N) φφᵀ, with 1 for a bias; None where the head is trained.
    """

    outputs: Tensor
    shape: torch.Size
    moving: Tensor
    num_tangents: int
    staying: Tensor | None = None

    def covariance(self, localization: float, head_precision: float | None = None) -> Tensor:
        """Give the covariance (NK, NK) of the outputs.

        Args:
            localization: γ.
            head_precision: τ, of a fresh head.
        """
        if self.staying is None:
            return self.moving / localization
        assert head_precision is not None
        one = (self.staying + self.moving / localization) / head_precision
        same = torch.eye(self.outputs.shape[1], dtype=one.dtype, device=one.device)
        return torch.kron(one, same)


def tangents_of(network: FlatNetwork, source: TensorData, head: str | None = None) -> Tangents:
    """Differentiate a checkpoint's outputs, or with a fresh head its features, by all weights.

    Args:
        network: the checkpoint.
        source: N data.
        head: the name of a fresh head; None (default) where it is trained.

    Raises:
        ValueError: more than 1,000 outputs in all; a fresh head that is no linear layer, or does
            not give the network's outputs.
    """
    with torch.no_grad():
        outputs = network(network.anchor, source.inputs)
    rows, count = len(outputs), outputs[0].numel()
    if rows * count > MOST_OUTPUTS:
        raise ValueError(
            f"{rows} data of {count} outputs each have a covariance of {rows * count} rows; at "
            f"most {MOST_OUTPUTS} are taken"
        )
    if head is None:
        tangents = _Tangents(network, source, lambda vector, row: network(vector, row).flatten())
        moving = tangents.kernel(count, together=False)
        return Tangents(outputs.reshape(rows, count).double(), outputs.shape[1:], moving, count)
    features = _features_of(network, source, head, outputs)
    staying = features @ features.T + float(f"{head}.bias" in network.slices)
    probes = _probes(features.shape[1], network.num_parameters).to(features.device)

    # As few probes at a time as let all data stand side by side, if one does.
    at_once = max(1, MOST_NUMBERS // (rows * network.num_parameters))
    moving = features.new_zeros(rows, rows)
    for some in torch.split(probes, at_once):
        moving += _Tangents(network, source, partial(_probed, network, head, some)).kernel(
            len(some), together=True
        )
    return Tangents(
        features.new_zeros(rows, count), outputs.shape[1:], moving, len(probes), staying
    )


def _probed(network: FlatNetwork, head: str, probes: Tensor, vector: Tensor, row: Any) -> Tensor:
    found: Tensor = probes.to(vector.dtype) @ layer_inputs(network, vector, row, head).flatten()
    return found


def _features_of(network: FlatNetwork, source: TensorData, head: str, outputs: Tensor) -> Tensor:
    """Give the features (N, F), if the head is a linear layer and the outputs are its own."""
    layer = dict(network.module.named_modules()).get(head)
    if not isinstance(layer, nn.Linear):
        raise ValueError(f"the fresh head {head!r} is no torch.nn.Linear")
    with torch.no_grad():
        features = layer_inputs(network, network.anchor, source.inputs, head)
        parts = network.unflatten(network.anchor)
        own = nn.functional.linear(features, parts[f"{head}.weight"], parts.get(f"{head}.bias"))
    same = own.shape == outputs.shape and torch.allclose(own, outputs, rtol=1e-3, atol=1e-4)
    if not same:
        raise ValueError(f"the network's outputs are not those of the fresh head {head!r}")
    return features.double()


def _probes(num_features: int, num_weights: int) -> Tensor:
    """Give directions (V, F) of the features with VᵀV ≈ 1: all, or as many as fit, at random.

    Every checkpoint gets the same ones, so that what they leave out hardly tells two apart.
    """
    count = max(LEAST_PROBES, min(num_features, MOST_NUMBERS // num_weights))
    if count >= num_features:
        return torch.eye(num_features)
    generator = torch.Generator().manual_seed(0)
    orthogonal = torch.linalg.qr(torch.randn(num_features, count, generator=generator)).Q
    found: Tensor = orthogonal.T * (num_features / count) ** 0.5
    return found


@dataclass(frozen=True)
class _Tangents:
    """Rows of derivatives by the weights, of as many data at a time as memory is meant for."""

    network: FlatNetwork
    source: TensorData
    function: Callable[[Tensor, Any], Tensor]

    def kernel(self, count: int, *, together: bool) -> Tensor:
        """Compute JJᵀ in double precision.

        Args:
            count: R, of numbers that the function gives of a datum.
            together: whether to give (N, N), summed over them, in place of (NR, NR).
        """
        num_data = self.source.num_data
        size = max(1, MOST_NUMBERS // (count * self.network.num_parameters))
        blocks = [slice(at, at + size) for at in range(0, num_data, size)]
        parts: list[list[Tensor]] = []
        for i, where in enumerate(blocks):
            rows = self._rows(where, together=together)
            found = [parts[j][i].T for j in range(i)]
            for other in blocks[i:]:
                columns = rows if other == where else self._rows(other, together=together)
                found.append((rows @ columns.T).double())
            parts.append(found)
        return torch.cat([torch.cat(found, 1) for found in parts])

    def _rows(self, where: slice, *, together: bool) -> Tensor:
        def of_one(vector: Tensor, row: Any) -> Tensor:
            return self.function(vector, pytree.tree_map(lambda value: value[None], row))

        data = pytree.tree_map(lambda value: value[where], self.source.inputs)
        try:
            found: Tensor = vmap(jacrev(of_one), in_dims=(None, 0))(self.network.anchor, data)
        except RuntimeError:  # a forward pass that looks at its data, as at their padding
            found = self._one_by_one(data)
        return found.detach().flatten(1) if together else found.detach().flatten(0, 1)

    def _one_by_one(self, data: Any) -> Tensor:
        vector, found = self.network.anchor.detach().clone().requires_grad_(), []
        for k in range(len(pytree.tree_leaves(data)[0])):
            one = pytree.tree_map(lambda value, k=k: value[k : k + 1], data)
            with torch.enable_grad():
                outputs = self.function(vector, one)
            found.append(
                torch.stack(
                    [torch.autograd.grad(value, vector, retain_graph=True)[0] for value in outputs]
                )
            )
        return torch.stack(found)
