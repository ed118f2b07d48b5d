"""One run of a Pyro program at given unconstrained values: handlers, transforms, checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, Unit
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from ppl_fe.inference.program.site_checks import (
    RefusedSiteError,
    Rows,
    data_size,
    is_real,
    likely_dtype,
    refuse_broadcast,
    transform_of,
)


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


class Site(NamedTuple):
    """A latent site: its name, its shape on unconstrained space and on its support."""

    name: str
    shape: tuple[int, ...]
    support_shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return prod(self.shape)


class Subsample(NamedTuple):
    """A plate that looks at `subsample_size` of its `size` entries."""

    name: str
    size: int
    subsample_size: int


@dataclass
class ProgramRun:
    """One evaluation: log-density, plain log-likelihood, constrained values, terms of the data."""

    log_density: Tensor
    log_likelihood: Tensor
    values: dict[str, Tensor] = field(default_factory=dict)
    pointwise: dict[str, Pointwise] = field(default_factory=dict)


@dataclass
class Prototype:
    """What one trial run says of a program; the fields are those of `Density`."""

    sites: tuple[Site, ...]
    subsamples: tuple[Subsample, ...]
    num_data: int
    dtype: torch.dtype
    device: torch.device
    is_static: bool
    transforms: dict[str, Any]
    deterministic: tuple[Site, ...]


class TrialRunError(Exception):
    """A program failed on its trial run: its error, and the dtype of its sites up to there."""

    def __init__(self, error: Exception, dtype: torch.dtype) -> None:
        super().__init__(error)
        self.error, self.dtype = error, dtype


class _Substitute(Messenger):
    """Give every latent site the image of its unconstrained value, every plate its indices."""

    def __init__(
        self,
        unconstrained: Mapping[str, Tensor] | None,
        indices: Mapping[str, Tensor] | None,
        otherwise: torch.dtype = torch.float32,
        *,
        gradient: bool = False,
    ) -> None:
        super().__init__()
        self.unconstrained, self.indices = unconstrained, indices
        self.otherwise, self.gradient = otherwise, gradient
        self.log_jacobian: Tensor | float = 0.0
        self.latent: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample):
            if self.indices is not None and msg["name"] in self.indices:
                msg["value"], msg["done"] = self.indices[msg["name"]], True
            elif self.indices is None:  # trial run: reach for both ends of the data
                size, subset = msg["fn"].size, msg["fn"].subsample_size
                in_part = subset is not None and subset < size
                if in_part or msg["value"] is None:
                    first = size - subset if in_part else 0
                    msg["value"] = torch.arange(first, size).as_subclass(Rows)
                    msg["done"] = True
            return
        if msg["is_observed"] or msg["value"] is not None:
            return
        name, fn = msg["name"], msg["fn"]
        if name in self.latent:
            return
        transform = transform_of(name, fn)
        if self.unconstrained is None:
            # The trial run is at the origin: no draw from the prior is needed, so improper
            # priors serve too.
            shape = transform.inverse_shape(fn.shape())
            start = likely_dtype(fn, self.otherwise)
            unconstrained = torch.zeros(shape, dtype=start.dtype, device=start.device)
            unconstrained = unconstrained.requires_grad_(self.gradient).clone()
        else:
            unconstrained = self.unconstrained[name]
        value = transform(unconstrained)
        if not is_real(fn):  # a sum over D zeros costs as much as one that is needed
            jacobian = transform.log_abs_det_jacobian(unconstrained, value)
            self.log_jacobian = self.log_jacobian + jacobian.sum()
        self.latent[name] = (tuple(unconstrained.shape), msg)
        msg["value"], msg["done"] = value, True


def run_program(
    call: Callable[[], Any], unconstrained: Mapping[str, Tensor], indices: Mapping[str, Tensor]
) -> ProgramRun:
    """Run the program at unconstrained values and index sets; pure, so it can be traced."""
    handler = _Substitute(unconstrained, indices)
    trace = _trace(call, handler, validate=False)
    log_density: Any = handler.log_jacobian
    log_likelihood: Any = torch.zeros(())
    values, found = {}, {}
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or isinstance(site["fn"], _Subsample):
            continue
        log_density = log_density + site["log_prob_sum"]
        if name in handler.latent:
            values[name] = site["value"]
        elif is_likelihood(site):
            found[name] = pointwise(site)
            log_likelihood = log_likelihood + on_all_data(site, found[name].log_prob)
        elif is_computed(site) and not minibatch_plates(site):
            values[name] = site["value"]
    return ProgramRun(log_density, log_likelihood, values, found)


def prototype(
    call: Callable[[], Any], data: Sequence[Tensor], *, gradient: bool = False
) -> Prototype:
    """Run the program once, with Pyro's validation on, and say what it is made of.

    A site whose distribution holds no tensors (an improper flat prior) takes the data's dtype.

    Raises:
        TrialRunError: the program failed; with `gradient` also where none would go through it.
        ValueError: it ran, but is none that can be sampled.
    """
    floating = {tensor.dtype for tensor in data if tensor.is_floating_point()}
    otherwise = floating.pop() if len(floating) == 1 else torch.get_default_dtype()
    handler = _Substitute(None, None, otherwise, gradient=gradient)
    try:
        trace = _trace(call, handler, validate=True)
    except RefusedSiteError as error:
        raise (error.__cause__ or error) from None  # without the shapes that Pyro adds
    except Exception as error:
        dtypes = (msg["value"].dtype for _, msg in handler.latent.values())
        raise TrialRunError(error, next(dtypes, otherwise)) from error
    if not handler.latent:
        raise ValueError(
            "the model has no latent site: every pyro.sample statement is observed, "
            "so there is nothing to sample"
        )
    sites, static, transforms = [], True, {}
    for name, (shape, msg) in handler.latent.items():
        frames = minibatch_plates(msg)
        if frames:
            raise ValueError(
                f"latent site {name!r} lies inside the subsampled plate {frames[0].name!r}: its "
                "values change from minibatch to minibatch; marginalise it or drop subsample_size"
            )
        sites.append(Site(name, shape, tuple(msg["value"].shape)))
        static &= is_real(msg["fn"])
        transforms[name] = transform_of(name, msg["fn"]).inv
    subsamples, computed, num_data = [], [], 1
    for name, node in trace.nodes.items():
        if node["type"] != "sample":
            continue
        if isinstance(node["fn"], _Subsample):
            size, subset = node["fn"].size, node["fn"].subsample_size
            if subset is not None and subset < size:
                subsamples.append(Subsample(name, size, subset))
        elif is_likelihood(node):
            refuse_broadcast(name, node)
            num_data = max(num_data, data_size(node))
        elif name not in handler.latent and is_computed(node) and not minibatch_plates(node):
            shape = tuple(node["value"].shape)
            computed.append(Site(name, shape, shape))
    first = next(iter(handler.latent.values()))[1]["value"]
    return Prototype(
        tuple(sites),
        tuple(subsamples),
        num_data,
        first.dtype,
        first.device,
        static,
        transforms,
        tuple(computed),
    )


def _trace(call: Callable[[], Any], handler: _Substitute, *, validate: bool) -> Any:
    # The block keeps an enclosing handler (MCMC.run traces too) from seeing these sites.
    with poutine.block(), pyro.validation_enabled(validate), handler:
        trace = poutine.trace(call).get_trace()
        trace.compute_log_prob()
    return trace
