"""The configurational temperature, measured in every step at hardly any cost.

For a target p^{1/T} and *any* fixed centre c, integration by parts gives

    E[⟨w − c, ∇U(w)⟩] = T · D,        U = −log p,

over all coordinates, over any subset of them, and along any fixed direction v with ‖v‖ = 1:
E[(v·(w − c)) (v·∇U)] = T. A minibatch gradient may stand for ∇U, since its error is independent of
w. The mean over all coordinates hardly sees the few stiff directions in which a discretised
chain runs hot, hence the measurement along the stiffest one.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ppl_fe.inference.program.trace import Site

MOST_BLOCKS = 64  # one reduction a block and step; neighbours are joined beyond that

Blocks = Mapping[str, slice]


def site_blocks(sites: Sequence[Site]) -> dict[str, slice]:
    """One block a latent site."""
    ends = list(itertools.accumulate(site.size for site in sites))
    return {site.name: slice(end - site.size, end) for site, end in zip(sites, ends, strict=True)}


def at_most(blocks: Blocks, most: int = MOST_BLOCKS) -> dict[str, slice]:
    """Consecutive blocks joined, evenly, until there are no more than `most`.

    Example:
        >>> at_most({"a": slice(0, 2), "b": slice(2, 3), "c": slice(3, 7)}, 2)
        {'a ... b': slice(0, 3, None), 'c': slice(3, 7, None)}
    """
    names, size = list(blocks), -(-len(blocks) // most)
    groups = [names[k : k + size] for k in range(0, len(names), size)]
    return {
        group[0] if len(group) == 1 else f"{group[0]} ... {group[-1]}": slice(
            blocks[group[0]].start, blocks[group[-1]].stop
        )
        for group in groups
    }


def block_virials(blocks: Blocks, displacement: Tensor, gradient: Tensor) -> Tensor:
    """−⟨w − c, ∇log p⟩ over each block's coordinates: (C, D) twice -> (C, L)."""
    product = displacement * gradient
    return -torch.stack([product[:, block].sum(-1) for block in blocks.values()], -1)


def directional_virial(direction: Tensor, displacement: Tensor, gradient: Tensor) -> Tensor:
    """−(v·(w − c)) (v·∇log p) for unit directions v: (C, D) three times -> (C, 1)."""
    return -((direction * displacement).sum(-1) * (direction * gradient).sum(-1))[:, None]
