"""Run a Pyro program at unconstrained values: handlers, transforms, and what it observes.

Nothing else in the engine reads Pyro's traces. A site is a node of such a trace, and the plates
around it are its frames. `trial.py` looks once at what a program is made of; `run_program`
evaluates it, in every step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isclose, prod
from traceback import walk_tb
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, Unit
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from ppl_fe.inference.program.enumeration import Enumeration, sum_out
from ppl_fe.inference.program.equal_forms import OF_DENSITIES, equal_forms
from ppl_fe.inference.program.factorisations import NaNFactors
from ppl_fe.inference.program.site_checks import (
    Rows,
    base_of,
    is_enumerable,
    is_real,
    tensor_held,
    transform_of,
)


class Site(NamedTuple):
    """A latent site: its name, its shape on unconstrained space and on its support."""

    name: str
    shape: tuple[int, ...]
    support_shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Coordinates that it takes in a position."""
        return prod(self.shape)


class Subsample(NamedTuple):
    """A plate that looks at `subsample_size` of its `size` entries."""

    name: str
    size: int
    subsample_size: int


class Pointwise(NamedTuple):
    """An observed site's log-densities, and the axes (counted from the end) of subsampled plates.

    log_prob: one a datum of the minibatch, in the shape of the site's plates; times the program's
        own `poutine.scale`, and 0 where masked.
    axes: plate -> the axis of `log_prob` along which its minibatch lies.
    """

    log_prob: Tensor
    axes: Mapping[str, int]


@dataclass
class ProgramRun:
    """One evaluation: log-density, plain log-likelihood, constrained values, terms of the data.

    log_probs: site -> its part of the log-density, without a Jacobian.
    """

    log_density: Tensor
    log_likelihood: Tensor
    values: dict[str, Tensor] = field(default_factory=dict)
    pointwise: dict[str, Pointwise] = field(default_factory=dict)
    log_probs: dict[str, Tensor] = field(default_factory=dict)


def run_program(
    call: Callable[[], Any],
    unconstrained: Mapping[str, Tensor],
    indices: Mapping[str, Tensor],
    enumeration: Enumeration | None = None,
) -> ProgramRun:
    """Run a program at unconstrained values and index sets; pure, so that it can be traced.

    Args:
        call: runs the program.
        unconstrained: latent site -> value on unconstrained space.
        indices: subsampled plate -> index set (B,).
        enumeration: discrete sites that are summed out. Default none.
    """
    if enumeration is not None:
        call = enumeration.over_all_values(call)
    handler = Substitute(unconstrained, indices)
    try:
        trace = traced(call, handler, validate=False)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        # Looked for only then, as that slows every operation down.
        handler = Substitute(unconstrained, indices)
        with NaNFactors():
            trace = traced(call, handler, validate=False)
    log_density: Any = handler.log_jacobian
    log_likelihood: Any = torch.zeros(())
    values, found, log_probs = {}, {}, {}
    summed: frozenset[str] = frozenset()
    if enumeration is not None:
        sums = sum_out(trace, is_likelihood, lambda site: _pointwise(site).log_prob)
        summed, log_probs[enumeration.names[0]] = sums.names, sums.log_density
        log_density, log_likelihood = log_density + sums.log_density, sums.log_likelihood
        for name, terms in sums.pointwise.items():
            found[name] = _pointwise(trace.nodes[name])._replace(log_prob=terms)
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or isinstance(site["fn"], _Subsample):
            continue
        if name not in summed:
            log_probs[name] = site["log_prob_sum"]
            log_density = log_density + log_probs[name]
        if name in handler.latent:
            values[name] = site["value"]
        elif name in summed or (enumeration is not None and name in enumeration.dependent):
            continue
        elif is_likelihood(site):
            found[name] = _pointwise(site)
            log_likelihood = log_likelihood + _on_all_data(site, found[name].log_prob)
        elif is_computed(site) and not minibatch_plates(site):
            values[name] = site["value"]
    return ProgramRun(log_density, log_likelihood, values, found, log_probs)


def is_likelihood(site: Any) -> bool:
    """Return whether data were observed there; factors and deterministic values only look so."""
    return bool(site["is_observed"]) and not isinstance(site["fn"], Unit) and not is_computed(site)


def is_computed(site: Any) -> bool:
    """Return whether it is of `pyro.deterministic`."""
    return isinstance(site["fn"], Delta) or bool(site["infer"].get("_deterministic", False))


def _pointwise(site: Any) -> Pointwise:
    """Take a likelihood site's terms, weighted by its own scale: neither plates' nor tempering."""
    log_prob: Tensor = site["unscaled_log_prob"]
    mask = site["mask"]
    if mask is not None and mask is not True:
        log_prob = torch.where(torch.as_tensor(mask), log_prob, 0.0)
    weight = _own_scale(site)
    if weight is not None:
        log_prob = log_prob * weight
    return Pointwise(log_prob, {frame.name: frame.dim for frame in minibatch_plates(site)})


def _own_scale(site: Any) -> Tensor | float | None:
    """Find the `poutine.scale` that the program gave a site; None where it gave none."""
    scale, frames = site["infer"].get("untempered", (site["scale"], site["cond_indep_stack"]))
    plates = prod((f.full_size / f.size for f in frames if f.full_size), start=1.0)
    if isinstance(scale, Tensor):
        return scale / plates
    return None if isclose(scale, plates) else float(scale / plates)


def _on_all_data(site: Any, log_prob: Tensor) -> Tensor:
    """Sum a site's terms, scaled up from the minibatches of its plates."""
    frames = site["cond_indep_stack"]
    scale = prod((f.full_size / f.size for f in frames if f.full_size), start=1.0)
    return scale * log_prob.sum()


def minibatch_plates(site: Any) -> list[Any]:
    """List the plates around a site that look at a part of their entries."""
    return [frame for frame in site["cond_indep_stack"] if frame.size < (frame.full_size or 0)]


def subsample_of(name: str, site: Any) -> list[Subsample]:
    """Read a plate's draw of its indices: the plate, or nothing where it takes all its entries."""
    size, subset = site["fn"].size, site["fn"].subsample_size
    return [Subsample(name, size, subset)] if subset is not None and subset < size else []


class Substitute(Messenger):
    """Give every latent site the image of its unconstrained value, every plate its indices.

    Args:
        unconstrained: latent site -> value; None puts all of them at the origin.
        indices: subsampled plate -> index set; None takes rows at both ends of the data.
        otherwise: dtype of sites at the origin whose distribution holds no tensor.
        gradient: whether values at the origin require a gradient.
    """

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
        self.discrete: dict[str, Any] = {}
        self.observed: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample):
            self._choose_rows(msg)
        elif msg["is_observed"]:
            self.observed.add(msg["name"])
        elif msg["value"] is None and is_enumerable(msg["fn"]):
            self.discrete[msg["name"]] = msg
            msg["value"], msg["done"] = msg["fn"].enumerate_support()[0], True
        elif msg["value"] is None and msg["name"] not in self.latent:
            self._set_value(msg)

    def _choose_rows(self, msg: Any) -> None:
        if self.indices is not None:
            if msg["name"] in self.indices:
                msg["value"], msg["done"] = self.indices[msg["name"]], True
            return
        size, subset = msg["fn"].size, msg["fn"].subsample_size
        in_part = subset is not None and subset < size
        if in_part or msg["value"] is None:
            first = size - subset if in_part else 0
            msg["value"] = torch.arange(first, size).as_subclass(Rows)
            msg["done"] = True

    def _set_value(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        transform = transform_of(name, fn)
        if self.unconstrained is None:
            # No draw from the prior is needed at the origin, so improper priors serve too.
            shape = transform.inverse_shape(fn.shape())
            like = tensor_held(fn, self.otherwise)
            unconstrained = torch.zeros(shape, dtype=like.dtype, device=like.device)
            unconstrained = unconstrained.requires_grad_(self.gradient).clone()
        else:
            unconstrained = self.unconstrained[name]
        value = transform(unconstrained)
        if not is_real(fn):  # a sum over D zeros costs as much as one that is needed
            jacobian = transform.log_abs_det_jacobian(unconstrained, value)
            self.log_jacobian = self.log_jacobian + jacobian.sum()
        # Of `obs_mask=`: its mask would leave what stands where data were observed without any
        # density. With it, these values have that of the missing ones, and change nothing else.
        if name.removesuffix("_unobserved") + "_observed" in self.observed:
            msg["mask"] = None
        self.latent[name] = (tuple(unconstrained.shape), msg)
        msg["value"], msg["done"] = value, True


def traced(call: Callable[[], Any], handler: Substitute, *, validate: bool) -> Any:
    # The block keeps an enclosing handler (MCMC.run traces too) from seeing these sites.
    with poutine.block(), pyro.validation_enabled(validate), equal_forms(OF_DENSITIES), handler:
        try:
            trace = poutine.trace(call).get_trace()
        except RuntimeError as error:
            made = _distribution_in(error)
            if made is not None:  # the author of the program has not written the line that failed
                error.add_note(f"in the code of {type(made).__name__}")
            raise
        try:
            trace.compute_log_prob()
        except RuntimeError as error:
            sites = (site for site in trace.nodes.values() if site["type"] == "sample")
            failed = next(site for site in sites if "log_prob_sum" not in site)
            kind = type(base_of(failed["fn"])).__name__
            error.add_note(f"in the log-density of site {failed['name']!r}, {kind}")
            raise
    return trace


def _distribution_in(error: BaseException) -> torch.distributions.Distribution | None:
    """Find the distribution whose method raised an error, or called what raised it."""
    held = [frame.f_locals.get("self") for frame, _ in walk_tb(error.__traceback__)]
    found = [own for own in held if isinstance(own, torch.distributions.Distribution)]
    return found[-1] if found else None
