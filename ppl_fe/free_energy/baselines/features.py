"""What enters the head of a network: the features that the criteria look at."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ppl_fe.arguments import did_you_mean
from ppl_fe.networks.flat import FlatNetwork
from ppl_fe.networks.matching import listed


def last_linear(network: FlatNetwork) -> str:
    """Find the name of the last linear layer in the order of ``module.named_modules()``.

    Args:
        network: the network to look into.

    Returns:
        The dotted name of the submodule.

    Raises:
        ValueError: the network has no linear submodule.

    Example:
        >>> from torch import nn
        >>> last_linear(FlatNetwork(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))))
        '2'
    """
    named = network.module.named_modules()
    linear: list[str] = [
        name for name, module in named if name and isinstance(module, torch.nn.Linear)
    ]
    if not linear:
        raise ValueError("network has no linear submodule; name its last layer with features=")
    return linear[-1]


def layer_inputs(network: FlatNetwork, vector: Tensor, inputs: Any, layer: str) -> Tensor:
    """Compute what enters a layer, flattened to one row an example.

    Args:
        network: the network; it must call the module named ``layer`` with one positional tensor.
        vector: the weights, (D,).
        inputs: (B, ...), or name -> (B, ...) for a network called by keyword.
        layer: name of the submodule.

    Returns:
        (B, F), differentiable in ``vector`` and ``inputs``, and usable under ``vmap``.

    Raises:
        ValueError: there is no such submodule, or the forward pass does not reach it.

    Example:
        >>> from torch import nn
        >>> network = FlatNetwork(nn.Sequential(nn.Flatten(), nn.Linear(2, 3)))
        >>> layer_inputs(network, network.anchor, torch.tensor([[[1.0], [2.0]]]), "1")
        tensor([[1., 2.]])
    """
    modules = dict(network.module.named_modules())
    if not layer or layer not in modules:
        named = [name for name in modules if name]
        instead = did_you_mean(layer, named) or f"there are: {listed(named)}"
        raise ValueError(f"features={layer!r} is no submodule; {instead}")
    entered: list[Tensor] = []
    hook = modules[layer].register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    try:
        network(vector, inputs)
    finally:
        hook.remove()
    if not entered:
        raise ValueError(
            f"features={layer!r} is not called in the forward pass; name another layer"
        )
    return entered[-1].flatten(1)
