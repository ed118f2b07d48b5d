"""Coordinates for a weights site that hangs on other latent sites: centred, or a unit variable.

    w = loc + s^{1−c} (v − c·loc),    v ~ law(c·loc, s^c),    c in [0, 1] for each weight

(Papaspiliopoulos, Roberts & Sköld 2007; Gorinova, Moore & Hoffman 2020). At c = 1 v is w itself, at
c = 0 a variable of location 0 and scale 1. Under a prior whose s is another site a weight that the
data leave alone makes a funnel of (w, log s) at c = 0 vanishes, and one that the data hold makes a
ridge of (v, log s) that at c = 1 vanishes: no step size serves a funnel, nor a ridge whose width
varies. With Gaussian data that hold w with r times the prior's precision c = r/(1 + r) suits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor

Prior = Callable[[Tensor], Tensor]
UNIT = "w_decentered"  # the name Pyro gives the site v


def centred_in_part(prior: Prior, share: Tensor | float) -> Prior:
    """Change a prior's coordinates: `w` becomes deterministic, and `w_decentered` is latent.

    Args:
        prior: samples `w` from a law of location and scale.
        share: c, () or (D,).

    Example:
        >>> from ppl_fe.models import horseshoe
        >>> trace = poutine.trace(centred_in_part(horseshoe, 0.0)).get_trace(torch.zeros(3))
        >>> list(trace.stochastic_nodes)
        ['tau', 'scale', 'w_decentered']
    """

    def moved(anchor: Tensor) -> Tensor:
        w: Tensor = poutine.reparam(prior, config={"w": LocScaleReparam(share)})(anchor)
        return w

    return moved


def hangs_on_others(draw_weights: Callable[[], Tensor]) -> bool:
    """Decide whether `w` has a location and a scale that other latent sites may be in."""
    trace = poutine.trace(draw_weights).get_trace()
    law: Any = trace.nodes["w"]["fn"] if "w" in trace.nodes else None
    while hasattr(law, "base_dist"):
        law = law.base_dist
    of_scale = law is not None and {"loc", "scale"} <= set(law.arg_constraints)
    return of_scale and bool(set(trace.stochastic_nodes) - {"w", "head"})


def held(prior: Prior, values: Mapping[str, Tensor]) -> Prior:
    """Hold some sites of a prior at given values."""
    conditioned: Prior = poutine.condition(prior, dict(values))
    return conditioned


def site_values(draw_weights: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Draw a value of every site that is not held; give those of all sites."""
    with torch.no_grad():
        trace = poutine.trace(draw_weights).get_trace()
    return {n: node["value"] for n, node in trace.nodes.items() if node["type"] == "sample"}
