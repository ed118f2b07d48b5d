"""The loss after a Gaussian perturbation of the weights: how fragile a checkpoint is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ppl_fe.free_energy.chain_options import ChainOptions
from ppl_fe.free_energy.local_chains import held_out_loss
from ppl_fe.models.likelihoods import Likelihood
from ppl_fe.networks.flat import FlatNetwork

RELATIVE_SIZE, NUM_DRAWS = 0.1, 8


def perturbed_loss(
    network: FlatNetwork,
    vector: Tensor,
    data: Any,
    *,
    likelihood: str | Likelihood = ChainOptions.likelihood,
    relative_size: float = RELATIVE_SIZE,
) -> float:
    """Compute the mean loss at w* + σ ⊙ ξ, ξ ~ N(0, I), over eight draws.

    Springer et al. (2025, arXiv:2503.19206) saw checkpoints that lose more under such noise lose
    more when they are fine-tuned. σ is constant over each tensor of weights: `relative_size` of its
    root mean square, so that a rescaled layer is perturbed alike. All checkpoints of one
    architecture meet the same ξ, and their differences are known better than their levels.

    Args:
        network: the architecture.
        vector: (D,) the checkpoint.
        data: in any form that `fe.as_data` takes.
        likelihood: a name, or a function of (outputs, targets); "categorical" by default.
        relative_size: σ in units of each tensor's root mean square, 0.1 by default.

    Returns:
        Nats an example.

    Example:
        >>> network = FlatNetwork(torch.nn.Linear(2, 1))
        >>> data = torch.ones(3, 2), network(network.anchor, torch.ones(3, 2))[:, 0]
        >>> sizes = [0.0, 0.1, 1.0]
        >>> losses = [perturbed_loss(network, network.anchor, data, likelihood="normal",
        ...                          relative_size=size) for size in sizes]
        >>> losses == sorted(losses)
        True
    """
    size = torch.empty_like(vector)
    for place in network.slices.values():
        size[place] = relative_size * vector[place].square().mean().sqrt()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((NUM_DRAWS, len(vector)), generator=generator, dtype=vector.dtype)
    found = held_out_loss(network, vector + size * noise.to(vector), data, likelihood=likelihood)
    return float(found.mean())
