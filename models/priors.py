"""Priors over a network's weights: anchor (D,) -> the site `w` (D,)."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from torch import Tensor


def gaussian(anchor: Tensor, precision: float | Tensor = 1.0) -> Tensor:
    """w ~ Normal(anchor, 1/√precision), normalised; the localiser of the free energy.

    log p(w) = ½ D log(precision/2π) − ½ precision ‖w − anchor‖².

    Example:
        >>> import torch
        >>> gaussian(torch.zeros(3), precision=4.0).shape
        torch.Size([3])
    """
    w: Tensor = pyro.sample("w", dist.Normal(anchor, precision**-0.5).to_event(1))
    return w
