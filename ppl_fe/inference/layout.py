"""Sites side by side in one position vector, in program order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ppl_fe.inference.program import Site


def split(sites: Sequence[Site], position: Tensor) -> dict[str, Tensor]:
    """Positions (..., D) -> site name -> unconstrained values (..., *unconstrained shape)."""
    lead = position.shape[:-1]
    # One split rather than a slice each: its gradient is one concatenation.
    parts = torch.split(position, [site.size for site in sites], -1)
    named = zip(sites, parts, strict=True)
    return {site.name: part.reshape((*lead, *site.shape)) for site, part in named}


def join(sites: Sequence[Site], unconstrained: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The inverse of `split`: site name -> (C, *unconstrained shape) becomes (C, D).

    Raises:
        ValueError: other names or shapes than those of the sites.
    """
    names = sorted(site.name for site in sites)
    if sorted(unconstrained) != names:
        raise ValueError(
            f"initial_params must name the latent sites {names}, got {sorted(unconstrained)}"
        )
    parts = []
    for site in sites:
        value = torch.as_tensor(unconstrained[site.name], dtype=dtype)
        if tuple(value.shape[1:]) != site.shape:
            raise ValueError(
                f"initial_params[{site.name!r}] must have shape (num_chains, "
                f"{', '.join(map(str, site.shape))}) on unconstrained space, "
                f"got {tuple(value.shape)}"
            )
        parts.append(value.reshape(len(value), site.size))
    return torch.cat(parts, -1)
