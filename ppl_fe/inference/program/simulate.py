"""Run a program forwards: latent sites at given values or drawn, observed ones drawn or as given.

Pyro's own `Predictive` keeps `obs=y` as it is, and so gives the data back as predictions. Here
observed sites are drawn anew whatever they were given, and factors and computed values stay.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from ppl_fe.inference.program.dimensions import event_dimensions, named_axes
from ppl_fe.inference.program.each_chain import without_fallback_warnings
from ppl_fe.inference.program.equal_forms import (
    OF_DRAWS,
    OF_PRIORS,
    OutOfPlaceDraws,
    equal_forms,
)
from ppl_fe.inference.program.minibatches import index_sets, put_together
from ppl_fe.inference.program.trace import (
    Subsample,
    is_computed,
    is_likelihood,
    minibatch_plates,
    subsample_of,
)


class Drawn(NamedTuple):
    """A site's value, and the axes (counted from the end) of subsampled plates."""

    value: Tensor
    axes: Mapping[str, int]


@dataclass
class Simulation:
    """One run of a program forwards.

    Attributes:
        latent: sites without data. observed: sites with data. computed: `pyro.deterministic`.
        discrete: those of `latent` and `observed` that are.
        dims: site -> names of the axes of its value.
        subsamples: the plates that subsample.
    """

    latent: dict[str, Drawn] = field(default_factory=dict)
    observed: dict[str, Drawn] = field(default_factory=dict)
    computed: dict[str, Drawn] = field(default_factory=dict)
    discrete: set[str] = field(default_factory=set)
    dims: dict[str, tuple[str, ...]] = field(default_factory=dict)
    subsamples: tuple[Subsample, ...] = ()


def simulate(
    call: Callable[[], Any],
    values: Mapping[str, Tensor],
    indices: Mapping[str, Tensor] | None = None,
    *,
    anew: bool = True,
) -> Simulation:
    """Run a program at given values of latent sites; draw those that have none.

    Args:
        call: runs the program.
        values: latent site -> value on its support.
        indices: subsampled plate -> index set (B,); by default the first B entries of each.
        anew: draw observed sites, default True; otherwise they are as observed.

    Raises:
        ValueError: a value of another shape than the program's, or a site that cannot be drawn.
    """
    handler = _Forwards(values, indices, anew)
    try:
        with (
            poutine.block(),
            pyro.validation_enabled(False),
            equal_forms(OF_PRIORS),
            handler,
        ):
            trace = poutine.trace(call).get_trace()
    except NotImplementedError as error:
        raise ValueError(
            f"site {handler.last!r} cannot be drawn from, as an improper prior cannot: {error}"
        ) from error
    found, nodes, plates = Simulation(), {}, list[Subsample]()
    for name, node in trace.nodes.items():
        if node["type"] != "sample":
            continue
        if isinstance(node["fn"], _Subsample):
            plates += subsample_of(name, node)
            continue
        if name in handler.observed:
            kind = found.observed
        elif is_computed(node):
            kind = found.computed
        elif node["is_observed"]:  # a factor
            continue
        else:
            kind = found.latent
        if kind is not found.computed and _is_discrete(node["fn"]):
            found.discrete.add(name)
        events = event_dimensions(node)
        axes = {frame.name: frame.dim - events for frame in minibatch_plates(node)}
        kind[name], nodes[name] = Drawn(node["value"], axes), node
    found.dims, found.subsamples = named_axes(nodes), tuple(plates)
    return found


class _Forwards(Messenger):
    """Give latent sites their values, plates their indices, and take the data from observed ones.

    Args:
        values, indices, anew: as in `simulate`.
    """

    def __init__(
        self, values: Mapping[str, Tensor], indices: Mapping[str, Tensor] | None, anew: bool
    ) -> None:
        super().__init__()
        self.values, self.indices, self.anew = values, indices, anew
        self.observed: set[str] = set()
        self.last = ""

    def _pyro_sample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        self.last = name
        if isinstance(fn, _Subsample):
            if msg["value"] is None and fn.subsample_size is not None:
                rows = (self.indices or {}).get(name, torch.arange(fn.subsample_size))
                msg["value"], msg["done"] = rows, True
        elif msg["is_observed"]:
            if is_likelihood(msg):
                self.observed.add(name)
                if self.anew:
                    msg["is_observed"], msg["value"], msg["done"] = False, None, False
        elif msg["value"] is None and name in self.values:
            value = self.values[name]
            if value.shape != fn.shape():
                raise ValueError(
                    f"a draw of site {name!r} has shape {tuple(value.shape)}, in the model it is "
                    f"{tuple(fn.shape())}; give the arguments of the run, and a run whose sites "
                    "were kept whole"
                )
            msg["value"], msg["done"] = value, True


def at_every_draw(
    call: Callable[[], Any],
    values: Mapping[str, Tensor],
    num_draws: int,
    subsets: Mapping[str, Tensor],
    kinds: Sequence[str],
) -> dict[str, Tensor]:
    """Run a program forwards at S values of its latent sites, batched over them where that goes.

    Args:
        call: runs the program.
        values: latent site -> values (S, ...).
        num_draws: S.
        subsets: subsampled plate -> index set.
        kinds: which fields of a `Simulation` are wanted.

    Returns:
        Site -> values (S, ...).
    """

    def one(own: dict[str, Tensor], _: Tensor) -> dict[str, Tensor]:
        found = simulate(call, own, subsets)
        return {name: drawn.value for kind in kinds for name, drawn in getattr(found, kind).items()}

    counted = torch.arange(num_draws)
    state = torch.get_rng_state()
    try:
        with without_fallback_warnings(), equal_forms(OF_DRAWS), OutOfPlaceDraws():
            batched = torch.func.vmap(one, randomness="different")
            found: dict[str, Tensor] = batched(dict(values), counted)
        return found
    except (RuntimeError, ValueError, NotImplementedError):  # what torch.func does not take
        torch.set_rng_state(state)
    each = [
        one({name: value[k] for name, value in values.items()}, counted[k])
        for k in range(num_draws)
    ]
    return {name: torch.stack([own[name] for own in each]) for name in each[0]}


def observed_values(
    call: Callable[[], Any],
    values: Mapping[str, Tensor],
    subsamples: Sequence[Subsample],
    device: torch.device,
) -> dict[str, NDArray[Any]]:
    """Find the values of each observed site on all the data, at values of the latent ones."""
    parts, axes = [], {}
    for own in index_sets(subsamples, device):
        with torch.random.fork_rng(devices=[]):  # of sites that have no values
            run = simulate(call, values, own, anew=False)
        seen = {name: to_numpy(drawn.value) for name, drawn in run.observed.items()}
        parts.append((own, whole_numbers(seen, run.discrete)))
        axes = {name: drawn.axes for name, drawn in run.observed.items()}
    return put_together(parts, axes, subsamples)


def whole_numbers(
    arrays: Mapping[str, NDArray[Any]], discrete: Collection[str]
) -> dict[str, NDArray[Any]]:
    """Give the arrays of discrete sites as integers, as pictures of counts need them.

    Torch's counts are floats.

    Example:
        >>> whole_numbers({"cases": np.array([2.0]), "rate": np.array([2.0])}, {"cases"})
        {'cases': array([2]), 'rate': array([2.])}
    """
    return {
        name: array.astype(np.int64) if name in discrete else array
        for name, array in arrays.items()
    }


def _is_discrete(distribution: Any) -> bool:
    try:
        return bool(distribution.support.is_discrete)
    except NotImplementedError:  # a distribution of a user's own that says nothing of it
        return False


def to_numpy(tensor: Any) -> NDArray[Any]:
    """Copy a tensor, so that who changes the data later does not change what was kept."""
    values = tensor.detach().cpu().numpy() if isinstance(tensor, Tensor) else tensor
    return np.array(values)
