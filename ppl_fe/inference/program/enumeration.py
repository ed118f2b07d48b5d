"""Sum discrete latent sites out, exactly, by Pyro's parallel enumeration.

    log p(x, y) = log Σ_z p(x, z, y)

Every discrete site takes all values of its support at once, each along an axis of its own to the
left of the plates, and the sites that depend on it have their log-densities along these axes.
Pyro's contraction sums over them, plate by plate. What is known of the data is the difference to
the same sum without them: log p(y | x) = log Σ_z p(x, z, y) − log Σ_z p(x, z).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from opt_einsum import shared_intermediates
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine.enum_messenger import EnumMessenger
from torch import Tensor

from ppl_fe.inference.program.equal_forms import OF_SUMS, equal_forms

Ordinal = frozenset[str]  # the symbols of the plates around a term


@dataclass(frozen=True)
class Enumeration:
    """The discrete sites of a program that are summed out.

    Attributes:
        names: of these sites.
        depth: how many axes plates take, counted from the right.
        dependent: computed sites that depend on them, and so have no value of their own.
    """

    names: tuple[str, ...]
    depth: int
    dependent: frozenset[str] = frozenset()

    def over_all_values(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """Make a call of the program at all values of its discrete sites."""
        marked = poutine.infer_config(call, config_fn=self._mark)
        every: Callable[[], Any] = _EveryValue(first_available_dim=-1 - self.depth)(marked)
        return every

    def _mark(self, msg: Any) -> dict[str, Any]:
        chosen = msg["type"] == "sample" and msg["name"] in self.names
        return {"enumerate": "parallel", "expand": False} if chosen else {}


class _EveryValue(EnumMessenger):
    """Enumerate as Pyro does, and note the axes of values without `.data`, which vmap forbids."""

    def _pyro_post_sample(self, msg: Any) -> None:
        if not isinstance(msg["fn"], TorchDistributionMixin) or msg["value"] is None:
            return
        value = msg["value"]
        shape = value.shape[: value.dim() - msg["fn"].event_dim]
        axes = msg["infer"].setdefault("_dim_to_id", {})
        axes.update(self._param_dims.get(msg["name"], {}))
        self._value_dims[msg["name"]] = {
            dim: number for dim, number in axes.items() if len(shape) >= -dim and shape[dim] > 1
        }


@dataclass(frozen=True)
class Summed:
    """Terms of the log-density that depend on discrete sites, summed over these.

    Attributes:
        names: of all sites that depend on discrete ones, and of those.
        log_density: of all of them, with the plates' N/B.
        log_likelihood: the part of the data.
        pointwise: the observed site of each plate that has one alone -> its log-likelihoods.
    """

    names: frozenset[str]
    log_density: Tensor
    log_likelihood: Tensor
    pointwise: Mapping[str, Tensor]


def sum_out(trace: Any, observed: Callable[[Any], bool], weight: Callable[[Any], Any]) -> Summed:
    """Sum a trace of all values over them.

    Args:
        trace: with log-densities.
        observed: says whether a node has data.
        weight: gives a node's unscaled log-densities, weighted by the program's own scale and 0
            where masked.

    Raises:
        ValueError: a plate that subsamples within the reach of a discrete site outside of it.
    """
    trace.symbolize_dims()
    plates = set(trace.plate_to_symbol.values())
    values = set(trace.symbol_to_dim) - plates
    nodes = {n: s for n, s in trace.nodes.items() if s["type"] == "sample" and "log_prob" in s}
    terms: dict[str, tuple[Ordinal, Tensor]] = {}
    for name, node in nodes.items():
        if "untempered" in node["infer"]:
            raise ValueError("a tempered likelihood cannot be summed over discrete sites")
        dims = node["infer"]["_dim_to_symbol"]
        term = packed.pack(weight(node), dims)
        if values & {*_dims(term)} or "_enumerate_dim" in node["infer"]:
            frames = (frame for frame in node["cond_indep_stack"] if frame.vectorized)
            ordinal = frozenset(trace.plate_to_symbol[frame.name] for frame in frames)
            terms[name] = ordinal, term
    with_data = {name for name in terms if observed(nodes[name])}
    scales = _scales(trace, nodes.values())
    _refuse_wide(trace, nodes, terms, scales)
    all_terms = _contracted(terms.values(), values)
    prior = _contracted((term for name, term in terms.items() if name not in with_data), values)
    density, before = _total(all_terms, scales), _total(prior, scales)
    pointwise: dict[str, Tensor] = {}
    if len(with_data) == 1:
        (name,) = with_data
        single = _of_single_data(trace, terms[name][0], all_terms, prior)
        pointwise = {} if single is None else {name: single}
    return Summed(frozenset(terms), density, density - before, pointwise)


def _dims(term: Tensor) -> str:
    """Give the symbols of a packed term's axes."""
    found: str = term._pyro_dims  # type: ignore[attr-defined]
    return found


def _contracted(
    terms: Iterable[tuple[Ordinal, Tensor]], values: set[str]
) -> list[tuple[Ordinal, Tensor]]:
    tree: OrderedDict[Ordinal, list[Tensor]] = OrderedDict()
    for ordinal, term in terms:
        tree.setdefault(ordinal, []).append(term)
    with shared_intermediates() as cache, equal_forms(OF_SUMS):
        found = contract_tensor_tree(tree, values, cache=cache)
    return [(ordinal, term) for ordinal, own in found.items() for term in own]


def _total(terms: Iterable[tuple[Ordinal, Tensor]], scales: Mapping[str, float]) -> Tensor:
    """Sum terms, those of minibatches scaled up to all the data."""
    total = torch.zeros(())
    for ordinal, term in terms:
        total = total + prod((scales[symbol] for symbol in ordinal), start=1.0) * term.sum()
    return total


def _scales(trace: Any, nodes: Iterable[Any]) -> dict[str, float]:
    """Find the symbol of each plate -> N/B."""
    return {
        trace.plate_to_symbol[frame.name]: (frame.full_size or frame.size) / frame.size
        for node in nodes
        for frame in node["cond_indep_stack"]
        if frame.vectorized
    }


def _of_single_data(
    trace: Any,
    ordinal: Ordinal,
    all_terms: Sequence[tuple[Ordinal, Tensor]],
    prior: Sequence[tuple[Ordinal, Tensor]],
) -> Tensor | None:
    """Find the log-likelihoods of a site's single data; None where they are not independent."""
    every = [term for own, term in all_terms if own == ordinal]
    before = [term for own, term in prior if own == ordinal]
    if len(every) != 1 or len(before) > 1:
        return None
    parts = [packed.unpack(term, trace.symbol_to_dim) for term in (*every, *before)]
    found: Tensor = parts[0] - parts[1] if before else parts[0]
    return found


def _refuse_wide(
    trace: Any,
    nodes: Mapping[str, Any],
    terms: Mapping[str, tuple[Ordinal, Tensor]],
    scales: Mapping[str, float],
) -> None:
    """Refuse a minibatch within a sum over a site that all the data share: it is no estimate.

    Raises:
        ValueError: the site and the plate.
    """
    owners = {
        node["infer"]["_dim_to_symbol"][node["infer"]["_enumerate_dim"]]: name
        for name, node in nodes.items()
        if "_enumerate_dim" in node["infer"]
    }
    plates = {symbol: plate for plate, symbol in trace.plate_to_symbol.items()}
    for name, (ordinal, term) in terms.items():
        for symbol in {*_dims(term)} & owners.keys():
            wide = {k for k in ordinal - terms[owners[symbol]][0] if scales[k] != 1}
            if wide:
                raise ValueError(
                    f"discrete site {owners[symbol]!r} lies outside of the plate "
                    f"{plates[min(wide)]!r}, which subsamples, and {name!r} in it depends on it: "
                    "no minibatch gives the sum over its values; drop subsample_size"
                )
