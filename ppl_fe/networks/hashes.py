"""Which weights a file belongs to: the SHA-256 of everything outside a fresh head."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ppl_fe.files.digest import digest
from ppl_fe.networks.flat import FlatNetwork
from ppl_fe.networks.matching import is_counter


def base_tensors(module: nn.Module, head: Sequence[str] = ()) -> dict[str, Tensor]:
    """Collect every parameter and persistent buffer outside the head, but no integer counters.

    Example:
        >>> list(base_tensors(nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1)), ["1.weight"]))
        ['0.weight', '0.bias', '1.bias', '0.running_mean', '0.running_var']
    """
    stored = set(module.state_dict())
    buffers = [
        (name, buffer)
        for name, buffer in module.named_buffers()
        if name in stored and not is_counter(buffer)
    ]
    every = [*module.named_parameters(), *buffers]
    return {name: tensor for name, tensor in every if name not in head}


def network_hash(network: FlatNetwork, head: Sequence[str] = ()) -> str:
    """Give the hash of a network at its anchor, buffers and fixed parameters included.

    Args:
        network: its anchor may differ from its module's weights; it is what counts.
        head: names of the fresh head's tensors, which are left out.

    Example:
        >>> network = FlatNetwork(nn.Linear(2, 1))
        >>> network_hash(network) == digest(base_tensors(network.module))
        True
    """
    tensors = base_tensors(network.module, head)
    anchor = network.unflatten(network.anchor)
    return digest({name: anchor.get(name, tensor) for name, tensor in tensors.items()})
