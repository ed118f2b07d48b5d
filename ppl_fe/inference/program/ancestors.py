"""Positions from a program's own prior, by running it forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from ppl_fe.inference.program.density import Density
from ppl_fe.inference.program.equal_forms import OF_PRIORS, equal_forms
from ppl_fe.inference.program.site_checks import transform_of


def prior_positions(density: Density, count: int, seed: int) -> Tensor:
    """Draw positions (K, D) from the prior of a program, K ≤ count; none where it cannot be drawn.

    An improper prior cannot, and a program may fail on what it draws; positions at which the
    log-density is not finite are left out.

    Args:
        density: of the program.
        count: how many are tried.
        seed: of the draws.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     pyro.sample("w", dist.Normal(100.0, 1.0))
        >>> bool((prior_positions(Density(model), 3, seed=0) > 90).all())
        True
    """
    own = {name: value[0] for name, value in density.chain_kwargs.items()}
    found = [torch.empty(0, density.num_parameters, dtype=density.dtype, device=density.device)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(count):
            try:
                values = _drawn(lambda: density.program(density.tensors, own))
                position = density.join({name: value[None] for name, value in values.items()})
                finite = torch.isfinite(density(position[0]).log_density)
            except (RuntimeError, ValueError, NotImplementedError, ArithmeticError):
                break  # what one draw cannot, the others cannot either
            if finite:
                found.append(position)
    return torch.cat(found)


def _drawn(call: Callable[[], Any]) -> dict[str, Tensor]:
    """Run a program forwards, and give its latent sites' values on unconstrained space.

    Args:
        call: runs the program; its draws are those of torch's global generator.
    """
    quiet = pyro.validation_enabled(False)
    with poutine.block(), torch.no_grad(), quiet, equal_forms(OF_PRIORS):
        nodes = poutine.trace(call).get_trace().nodes.items()
    return {
        name: transform_of(name, site["fn"]).inv(site["value"])
        for name, site in nodes
        if site["type"] == "sample"
        and not (site["is_observed"] or isinstance(site["fn"], _Subsample))
    }
