"""Measure the configurational temperature, in every step and at hardly any cost.

For a target p^{1/T} and *any* fixed centre c, integration by parts gives

    E[⟨w − c, ∇U(w)⟩] = T · D,        U = −log p,

over all coordinates, over any subset of them, and along any fixed direction v with ‖v‖ = 1:
E[(v·(w − c)) (v·∇U)] = T. A minibatch gradient may stand for ∇U, since its error is independent of
w. The mean over all coordinates hardly sees the few stiff directions in which a discretised
chain runs hot, so it is measured along the stiffest one, too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_fe.inference.program.density import Blocks


def block_virials(blocks: Blocks, displacement: Tensor, gradient: Tensor) -> Tensor:
    """Compute −⟨w − c, ∇log p⟩ over each block's coordinates: (C, D) twice -> (C, L)."""
    product = displacement * gradient
    return -torch.stack([product[:, block].sum(-1) for block in blocks.values()], -1)


def directional_virial(direction: Tensor, displacement: Tensor, gradient: Tensor) -> Tensor:
    """Compute −(v·(w − c)) (v·∇log p) for unit directions v: (C, D) three times -> (C, 1)."""
    return -((direction * displacement).sum(-1) * (direction * gradient).sum(-1))[:, None]
