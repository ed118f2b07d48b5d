"""Checkpoints side by side: lots that share their buffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ppl_fe.networks.flat import FlatNetwork

# Side by side up to here: more chains a step save no time on a CPU and cost memory.
MOST_CHAINS, MOST_COORDINATES = 128, 5 * 10**7


def side_by_side(networks: Mapping[str, FlatNetwork], num_chains: int) -> Sequence[list[str]]:
    """Divide the names into lots that share their buffers and fit side by side."""
    lots: list[list[str]] = []
    for name, network in networks.items():
        chains = min(MOST_CHAINS, MOST_COORDINATES // network.num_parameters)
        most = max(1, chains // num_chains)
        for lot in lots:
            if len(lot) < most and _same_buffers(networks[lot[0]].module, network.module):
                lot.append(name)
                break
        else:
            lots.append([name])
    return lots


def _same_buffers(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.buffers(), second.buffers(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
