"""Look once at what a program is made of: its sites, its plates, and whether it can be sampled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from ppl_fe.inference.program.dimensions import named_axes
from ppl_fe.inference.program.enumeration import Enumeration, sum_out
from ppl_fe.inference.program.site_checks import (
    RefusedSiteError,
    base_of,
    is_real,
    largest_plate,
    refuse_broadcast,
    refuse_loop,
    refuse_name,
    refuse_repeated,
    transform_of,
)
from ppl_fe.inference.program.trace import (
    Site,
    Subsample,
    Substitute,
    is_computed,
    is_likelihood,
    minibatch_plates,
    subsample_of,
    traced,
)


@dataclass
class TrialRun:
    """The make-up of a program, as one run has shown it; most fields are those of `Density`.

    Attributes:
        observed: sites with data, in the shape of all the data.
        dims: site -> names of its axes, by its plates.
        enumeration: of the discrete sites; None if there are none.
    """

    sites: tuple[Site, ...]
    subsamples: tuple[Subsample, ...]
    num_data: int
    dtype: torch.dtype
    device: torch.device
    is_static: bool
    transforms: dict[str, Any]
    deterministic: tuple[Site, ...]
    observed: tuple[Site, ...]
    dims: dict[str, tuple[str, ...]]
    enumeration: Enumeration | None


class TrialRunError(Exception):
    """A program failed on its trial run: its error, and the dtype of its sites up to there."""

    def __init__(self, error: Exception, dtype: torch.dtype) -> None:
        super().__init__(error)
        self.error, self.dtype = error, dtype


def trial_run(
    call: Callable[[], Any], data: Sequence[Tensor], *, gradient: bool = False
) -> TrialRun:
    """Run a program once, at the origin and with Pyro's validation on, and look at its sites.

    A site whose distribution holds no tensors (an improper flat prior) takes the data's dtype.

    Args:
        call: runs the program.
        data: the tensors that it is called with.
        gradient: of latent values is required, so that a program fails that has none.
            Default False.

    Raises:
        TrialRunError: the program failed.
        ValueError: it ran, but cannot be sampled.
    """
    floating = {tensor.dtype for tensor in data if tensor.is_floating_point()}
    otherwise = floating.pop() if len(floating) == 1 else torch.get_default_dtype()
    handler = Substitute(None, None, otherwise, gradient=gradient)
    try:
        trace = traced(call, handler, validate=True)
    except RefusedSiteError as error:
        raise (error.__cause__ or error) from None  # without the shapes that Pyro adds
    except Exception as error:
        dtypes = (msg["value"].dtype for _, msg in handler.latent.values())
        raise TrialRunError(error, next(dtypes, otherwise)) from error
    sites = _latent_sites(handler.latent)
    enumeration = _enumeration(call, handler, trace)
    hidden = {*handler.latent, *(enumeration.dependent if enumeration else ())}
    subsamples, computed, observed, num_data = list[Subsample](), [], [], 1
    named = {name: msg for name, (_, msg) in handler.latent.items()}
    frames = [frame for msg in named.values() for frame in msg["cond_indep_stack"]]
    with_latents = frozenset(frame.name for frame in frames)
    for name, node in trace.nodes.items():
        if node["type"] != "sample":
            continue
        if isinstance(node["fn"], _Subsample):
            subsamples += subsample_of(name, node)
            continue
        if is_likelihood(node):
            refuse_loop(name, node)
            refuse_broadcast(name, node)
            refuse_repeated(name, node, with_latents)
            num_data = max(num_data, largest_plate(node))
            observed.append(_of_all_data(name, node))
        elif is_computed(node) and not minibatch_plates(node) and name not in hidden:
            refuse_name(name)
            shape = tuple(node["value"].shape)
            computed.append(Site(name, shape, shape))
        else:
            continue
        named[name] = node
    first = next(iter(handler.latent.values()))[1]["value"]
    return TrialRun(
        sites,
        tuple(subsamples),
        num_data,
        first.dtype,
        first.device,
        all(is_real(msg["fn"]) for _, msg in handler.latent.values()),
        {name: transform_of(name, msg["fn"]).inv for name, (_, msg) in handler.latent.items()},
        tuple(computed),
        tuple(observed),
        named_axes(named),
        enumeration,
    )


def _latent_sites(latent: Mapping[str, Any]) -> tuple[Site, ...]:
    """Make the sites of the messages that a run has met, site -> (unconstrained shape, message).

    Raises:
        ValueError: there is nothing to sample, or a site in a plate that subsamples.
    """
    if not latent:
        raise ValueError(
            "the model has no latent site: every pyro.sample statement is observed, "
            "so there is nothing to sample"
        )
    sites = []
    for name, (shape, msg) in latent.items():
        refuse_name(name)
        frames = minibatch_plates(msg)
        if frames:
            raise ValueError(
                f"latent site {name!r} lies inside the subsampled plate {frames[0].name!r}: its "
                "values change from minibatch to minibatch; marginalise it or drop subsample_size"
            )
        sites.append(Site(name, shape, tuple(msg["value"].shape)))
    if not any(site.size for site in sites):
        raise ValueError(
            f"the model's latent sites hold no values ({', '.join(latent)}), so there is "
            "nothing to sample"
        )
    return tuple(sites)


def _enumeration(call: Callable[[], Any], handler: Substitute, trace: Any) -> Enumeration | None:
    """Find the discrete sites, and try the program at all of their values at once.

    Raises:
        ValueError: it fails there, or is nothing that can be summed.
    """
    if not handler.discrete:
        return None
    nodes = [node for node in trace.nodes.values() if node["type"] == "sample"]
    frames = [frame for node in nodes for frame in node["cond_indep_stack"] if frame.vectorized]
    names = tuple(handler.discrete)
    found = Enumeration(names, max((-frame.dim for frame in frames), default=0))
    origin = {
        name: torch.zeros(shape, dtype=msg["value"].dtype, device=msg["value"].device)
        for name, (shape, msg) in handler.latent.items()
    }
    again = Substitute(origin, None)
    try:
        every = traced(found.over_all_values(call), again, validate=True)
        sum_out(every, is_likelihood, lambda node: node["unscaled_log_prob"])
    except Exception as error:
        raise ValueError(
            f"the discrete sites {list(names)} are summed out, and the model fails at all of their "
            "values at once, which lie along axes to the left of the plates: index by "
            "pyro.ops.indexing.Vindex, choose by torch.where in place of `if`, and declare "
            f"every plate ({error})"
        ) from error
    for name, (_, msg) in handler.latent.items():
        if name not in again.latent or again.latent[name][1]["value"].shape != msg["value"].shape:
            raise ValueError(
                f"the support or the shape of latent site {name!r} depends on the discrete sites "
                f"{list(names)}, which are summed out; marginalise them by hand"
            )
    dependent = {
        name
        for name, node in every.nodes.items()
        if node["type"] == "sample"
        and not isinstance(node["fn"], _Subsample)
        and is_computed(node)
        and node["value"].shape != trace.nodes[name]["value"].shape
    }
    return replace(found, dependent=frozenset(dependent))


def _of_all_data(name: str, node: Any) -> Site:
    """Make the site of observed values, as long as the plates around it."""
    shape = list(torch.as_tensor(node["value"]).shape)
    for frame in minibatch_plates(node):
        axis = frame.dim - node["fn"].event_dim
        if -axis <= len(shape):
            shape[axis] = frame.full_size
    return Site(name, tuple(shape), tuple(shape))


def centred_sites(call: Callable[[], Any]) -> tuple[str, ...]:
    """Name the latent sites whose scale is itself latent: the centred form of a hierarchy.

    Args:
        call: runs the program.
    """
    handler = Substitute(None, None, gradient=True)
    with torch.enable_grad():
        traced(call, handler, validate=False)
    scales = {
        name: getattr(base_of(msg["fn"]), "scale", None)
        for name, (_, msg) in handler.latent.items()
    }
    return tuple(name for name, scale in scales.items() if getattr(scale, "requires_grad", False))
