"""Geometric complexity: how fast a checkpoint's features change with its inputs.

A lower value is claimed to mean a better transfer, and so for every criterion here.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from ppl_fe.free_energy.baselines.features import layer_inputs
from ppl_fe.networks.flat import FlatNetwork


def geometric_complexity(
    network: FlatNetwork, vector: Tensor, inputs: Tensor, layer: str, *, chunk_size: int = 64
) -> float:
    """Compute the mean over the data of the squared Frobenius norm of ∂features/∂x.

    (1/N) Σ_i ‖∂f(x_i)/∂x‖²_F (Dherin et al. 2022), taken of the features f as in the comparison of
    Munn & Wei (2025). Exact: one backward pass for each feature, vectorised over a chunk of data.

    Args:
        network: the network; each example must be treated alone, which evaluation mode ensures.
        vector: the weights, (D,).
        inputs: (N, ...), floating.
        layer: name of the submodule whose inputs are the features.
        chunk_size: examples at once, 64 by default; a chunk holds chunk_size · F · (size of one
            input) numbers, 64 · 512 · 3072 for a small residual network on 32 × 32 colour images.

    Returns:
        The mean, in units of features² / input².

    Raises:
        ValueError: the inputs are integers, which have no derivative.

    Example:
        >>> from torch import nn
        >>> network = FlatNetwork(nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 2)))
        >>> weights = torch.cat([torch.tensor([3.0, 4.0, 0.0]), torch.zeros(4)])
        >>> geometric_complexity(network, weights, torch.zeros(5, 2), "1")
        25.0
    """
    if not inputs.is_floating_point():
        raise ValueError(f"inputs are {inputs.dtype}; only floating inputs have a Jacobian")

    def one(x: Tensor) -> Tensor:
        return layer_inputs(network, vector, x.unsqueeze(0), layer).squeeze(0)

    total = 0.0
    for x in torch.split(inputs, chunk_size):
        total += vmap(jacrev(one))(x).detach().double().square().sum().item()
    return total / len(inputs)
