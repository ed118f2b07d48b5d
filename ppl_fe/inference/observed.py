"""What an observed site of a traced program says of the data: its log-densities, one a datum."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

import torch
from pyro.distributions import Delta, Unit
from torch import Tensor


class Pointwise(NamedTuple):
    """An observed site's log-densities, and the axes (counted from the end) of subsampled plates.

    log_prob: one a datum of the minibatch, in the shape of the site's plates; 0 where masked.
    axes: plate -> the axis of `log_prob` along which its minibatch lies.
    """

    log_prob: Tensor
    axes: Mapping[str, int]


def is_likelihood(site: Any) -> bool:
    """Whether data were observed there; factors and deterministic values are observed in form."""
    return bool(site["is_observed"]) and not isinstance(site["fn"], Unit) and not is_computed(site)


def is_computed(site: Any) -> bool:
    """Whether it is of `pyro.deterministic`."""
    return isinstance(site["fn"], Delta) or bool(site["infer"].get("_deterministic", False))


def pointwise(site: Any) -> Pointwise:
    """A likelihood site's terms, without any `poutine.scale`."""
    log_prob: Tensor = site["unscaled_log_prob"]
    mask = site["mask"]
    if mask is not None and mask is not True:
        log_prob = torch.where(torch.as_tensor(mask), log_prob, 0.0)
    return Pointwise(log_prob, {frame.name: frame.dim for frame in minibatch_plates(site)})


def on_all_data(site: Any, log_prob: Tensor) -> Tensor:
    """Σ of a site's terms, scaled up from the minibatches of its plates."""
    frames = site["cond_indep_stack"]
    scale = prod((f.full_size / f.size for f in frames if f.full_size), start=1.0)
    return scale * log_prob.sum()


def minibatch_plates(site: Any) -> list[Any]:
    """The plates around it that look at a part of their entries."""
    return [frame for frame in site["cond_indep_stack"] if frame.size < (frame.full_size or 0)]
