"""A Pyro program as a log-density of one vector: its latent sites side by side, unconstrained.

The density is a pure function of that vector, the index sets of the program's subsampled plates,
and the tensors that the program was called with, so it can be differentiated, batched over chains
and traced. Pyro's internals are in `trace.py`.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_fe.inference.program.dimensions import Labels, checked_labels
from ppl_fe.inference.program.each_chain import Way, gradient_of, over_chains
from ppl_fe.inference.program.explain import (
    called,
    is_array,
    raise_explained,
    refuse_non_finite,
)
from ppl_fe.inference.program.trace import ProgramRun, Site, Subsample, run_program
from ppl_fe.inference.program.trial import TrialRunError, centred_sites, trial_run

Tensors = tuple[Tensor, ...]
Indices = Tensors  # into the data, one set a plate
Data = Tensors | list[Tensors]  # shared or stacked over chains; a list where chains' shapes differ
Blocks = Mapping[str, slice]  # names of consecutive runs of coordinates

MOST_BLOCKS = 64  # a step takes one reduction a block


def merge_blocks(blocks: Blocks, most: int = MOST_BLOCKS) -> dict[str, slice]:
    """Merge neighbouring blocks, evenly, until there are no more than `most`; leave empty ones out.

    Example:
        >>> merge_blocks({"a": slice(0, 2), "b": slice(2, 3), "c": slice(3, 7)}, 2)
        {'a ... b': slice(0, 3, None), 'c': slice(3, 7, None)}
    """
    names = [name for name, block in blocks.items() if block.start < block.stop]
    size = max(1, -(-len(names) // most))
    groups = [names[k : k + size] for k in range(0, len(names), size)]
    return {
        group[0] if len(group) == 1 else f"{group[0]} ... {group[-1]}": slice(
            blocks[group[0]].start, blocks[group[-1]].stop
        )
        for group in groups
    }


class Terms(NamedTuple):
    """The two sums that one evaluation of a program gives.

    log_density: log p(constrained values, data) + log |Jacobian|, with the plates' N/B scale.
    log_likelihood: the observed sites' part, on all the data by the plates' scale, and weighted by
        the program's own `poutine.scale`. The power of a tempered posterior (`models.Tempering`) is
        left out, so that such a program still reports its plain likelihood.
    """

    log_density: Tensor
    log_likelihood: Tensor


class Density:
    """The log-density of a Pyro program on unconstrained space.

    log p(u) = log p(x(u), data) + log |det dx/du|, x = T(u), where T maps the real line to each
    site's support (`biject_to`); a support may depend on other sites. Discrete latent sites
    are summed over, and latent sites inside a subsampled plate are refused by name.

    Args:
        model: a Pyro program.
        args: its positional arguments; tensors among them become inputs of the traced graph rather
            than constants. Default none.
        kwargs: its keyword arguments, likewise. Default none.
        chain_kwargs: keyword arguments that differ from chain to chain, each a tensor with a
            leading chain dimension C (an anchor a chain, an inverse temperature a chain).
            Default none.
        data_per_chain: the tensors among the arguments are minibatches drawn elsewhere: evaluations
            get them with a leading chain dimension, and subsampled plates take them as they come.
            Default False.
        vectorized: batch the program over chains with `vmap` (default); otherwise run chain after
            chain.

    Attributes:
        num_parameters: D, the length of a position.
        sites: the latent sites in program order.
        num_data: n of the loss: the size of the largest plate around an observed site, or 1.
        dtype, device: of a position.
        is_static: every site's support is the real line, so that values are the position itself.
        deterministic: the sites of `pyro.deterministic`, computed from the latent ones.
        observed: the sites with data, in the shape of all the data.
        labels: names of the axes of all these sites, and of the entries along them.
        transforms: site name -> constrained to unconstrained values at the trial run, as Pyro's
            kernels carry them; exact unless a support depends on another site.
        way: how it is run for several chains; `run_as` changes it.

    Raises:
        ValueError: no latent site; a discrete one without a list of its values; a latent site
            inside a subsampled plate; a program that fails on the data given, with the arguments to
            change where they are of another dtype than it needs; NaN or infinity in them.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(y):
        ...     scale = pyro.sample("scale", dist.Exponential(1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(0.0, scale), obs=y)
        >>> density = Density(model, (torch.zeros(3),))
        >>> density
        Density(num_parameters=1, sites={'scale': ()}, num_data=3)
        >>> terms = density(torch.zeros(1))           # scale = exp(0) = 1, Jacobian exp(0)
        >>> round(terms.log_density.item(), 4)        # -1 - 3/2 log(2 pi)
        -3.7568
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        chain_kwargs: Mapping[str, Tensor] | None = None,
        *,
        data_per_chain: bool = False,
        vectorized: bool = True,
    ) -> None:
        self.chain_kwargs = dict(chain_kwargs or {})
        self.data_per_chain, self.way = data_per_chain, Way(vectorized)
        first = {name: value[0] for name, value in self.chain_kwargs.items()}
        self.program = called(model, args, kwargs or {}, first)
        refuse_non_finite(self.program)
        try:
            found = trial_run(
                lambda: self.program(self.tensors, first),
                self.tensors,
                gradient=any(map(is_array, self.program.leaves)),
            )
        except TrialRunError as failed:
            raise_explained(failed, partial(model, **first), *self.program.arguments)
        self._found = found
        self.sites: tuple[Site, ...] = found.sites
        self._plates: tuple[Subsample, ...] = found.subsamples
        self.num_data: int = found.num_data
        self.num_parameters = sum(site.size for site in self.sites)
        self.dtype, self.device, self.is_static = found.dtype, found.device, found.is_static
        self.deterministic, self.labels = found.deterministic, Labels(found.dims)

    def __repr__(self) -> str:
        sites = {site.name: site.support_shape for site in self.sites}
        subsampled = {plate.name: (plate.subsample_size, plate.size) for plate in self._plates}
        more = f", subsampled={subsampled}" if subsampled else ""
        return (
            f"Density(num_parameters={self.num_parameters}, sites={sites}, "
            f"num_data={self.num_data}{more})"
        )

    @property
    def tensors(self) -> Tensors:
        """Those among the arguments."""
        return self.program.tensors

    @property
    def observed(self) -> tuple[Site, ...]:
        """The sites with data, in the shape of all the data."""
        return self._found.observed

    @property
    def transforms(self) -> dict[str, Any]:
        """Site -> constrained to unconstrained values."""
        return self._found.transforms

    @property
    def summed_out(self) -> tuple[str, ...]:
        """The discrete sites, which are summed over."""
        return self._found.enumeration.names if self._found.enumeration else ()

    @property
    def subsamples(self) -> tuple[Subsample, ...]:
        """The plates whose index sets are inputs; none where minibatches are drawn elsewhere."""
        return () if self.data_per_chain else self._plates

    @property
    def chain_values(self) -> Tensors:
        """The values of `chain_kwargs` in order, each (C, ...)."""
        return tuple(self.chain_kwargs.values())

    @property
    def blocks(self) -> dict[str, slice]:
        """Where each latent site lies in a position."""
        ends = itertools.accumulate(site.size for site in self.sites)
        return {
            site.name: slice(end - site.size, end)
            for site, end in zip(self.sites, ends, strict=True)
        }

    def label(
        self,
        dims: Mapping[str, Sequence[str] | str] | None,
        coords: Mapping[str, Sequence[Any]] | None,
    ) -> None:
        """Name axes of sites and of the program's own tensors, and the entries along them.

        Raises:
            TypeError, ValueError: as `checked_labels`.
        """
        sites = (*self.sites, *self.deterministic, *self.observed)
        shapes = dict(zip(self.program.variables, (t.shape for t in self.tensors), strict=True))
        shapes |= {site.name: torch.Size(site.support_shape) for site in sites}
        named = {name: self.labels.of(name, len(shape)) for name, shape in shapes.items()}
        sizes = {
            dim: size for name in named for dim, size in zip(named[name], shapes[name], strict=True)
        }
        self.labels = checked_labels(named, sizes, dims, coords)

    def centred_sites(self) -> tuple[str, ...]:
        """Name the latent sites whose scale is itself latent."""
        first = {name: value[0] for name, value in self.chain_kwargs.items()}
        return centred_sites(lambda: self.program(self.tensors, first))

    def split(self, position: Tensor) -> dict[str, Tensor]:
        """Positions (..., D) -> site name -> unconstrained values (..., *unconstrained shape)."""
        lead = position.shape[:-1]
        # One split rather than a slice each: its gradient is one concatenation.
        parts = torch.split(position, [site.size for site in self.sites], -1)
        named = zip(self.sites, parts, strict=True)
        return {site.name: part.reshape((*lead, *site.shape)) for site, part in named}

    def join(self, unconstrained: Mapping[str, Tensor]) -> Tensor:
        """Undo `split`: site name -> (C, *unconstrained shape) becomes positions (C, D).

        Raises:
            ValueError: other names or shapes than those of the sites.
        """
        names = sorted(site.name for site in self.sites)
        if sorted(unconstrained) != names:
            raise ValueError(
                f"initial_params must name the latent sites {names}, got {sorted(unconstrained)}"
            )
        parts = []
        for site in self.sites:
            value = torch.as_tensor(unconstrained[site.name], dtype=self.dtype)
            if tuple(value.shape[1:]) != site.shape:
                raise ValueError(
                    f"initial_params[{site.name!r}] must have shape (num_chains, "
                    f"{', '.join(map(str, site.shape))}) on unconstrained space, "
                    f"got {tuple(value.shape)}"
                )
            parts.append(value.reshape(len(value), site.size))
        return torch.cat(parts, -1).to(self.device)

    def __call__(
        self,
        position: Tensor,
        indices: Indices | None = None,
        chain_values: Tensors | None = None,
        tensors: Tensors | None = None,
    ) -> Terms:
        """Evaluate one chain: position (D,), one index set (B,) a subsampled plate -> scalars."""
        run = self.run(position, indices, chain_values, tensors)
        return Terms(run.log_density, run.log_likelihood)

    def run(
        self,
        position: Tensor,
        indices: Indices | None = None,
        chain_values: Tensors | None = None,
        tensors: Tensors | None = None,
    ) -> ProgramRun:
        """Evaluate one chain as `__call__` does, and keep its values and the data's terms, too.

        Args:
            position: (D,).
            indices: an index set (B,) for each subsampled plate; by default the first B data.
            chain_values: those of `chain_kwargs` for this chain; by default the first chain's.
            tensors: in place of the program's own, which are the default.
        """
        if not indices:
            indices = tuple(
                torch.arange(plate.subsample_size, device=self.device) for plate in self._plates
            )
        chain_values = chain_values or tuple(value[0] for value in self.chain_values)
        named = {plate.name: subset for plate, subset in zip(self._plates, indices, strict=True)}
        data = self.tensors if tensors is None else tensors
        own = dict(zip(self.chain_kwargs, chain_values, strict=True))

        def call() -> Any:
            return self.program(data, own)

        return run_program(call, self.split(position), named, self._found.enumeration)

    def try_data(self, tensors: Tensors) -> None:
        """Run the program once on another minibatch than it was built with, Pyro's validation on.

        Raises:
            ValueError: it fails, or has other latent sites.
        """
        first = {name: value[0] for name, value in self.chain_kwargs.items()}
        given = [tuple(tensor.shape) for tensor in tensors]
        try:
            found = trial_run(lambda: self.program(tensors, first), tensors)
        except TrialRunError as failed:
            raise ValueError(
                f"the model failed on a batch of tensors of shapes {given}: {failed.error}; pad "
                "the loader's batches alike, or give the model plates of the batch's own length"
            ) from failed.error
        if found.sites != self.sites:
            raise ValueError(
                f"latent sites change their shape with the batch: {list(found.sites)} on tensors "
                f"of shapes {given}, {list(self.sites)} before; pad the loader's batches alike"
            )

    def run_as(self, way: Way) -> Density:
        """Copy the density, to be run in another way."""
        twin = copy.copy(self)
        twin.way = way
        return twin

    def over_chains(
        self, function: Callable[..., Any], *arguments: Any, in_dims: tuple[int | None, ...]
    ) -> Any:
        """Apply a function of one chain to all, in the density's own way; see `over_chains`."""
        return over_chains(function, *arguments, in_dims=in_dims, vectorized=self.way.vectorized)

    def outside_steps(
        self, function: Callable[..., Any], *arguments: Any, in_dims: tuple[int | None, ...]
    ) -> Any:
        """Apply a function to all chains as `over_chains`, one by one where they do not batch.

        For results that no step takes, and whose program nobody has tried yet.
        """
        try:
            return self.over_chains(function, *arguments, in_dims=in_dims)
        except RuntimeError:
            if not self.way.vectorized:
                raise
            return over_chains(function, *arguments, in_dims=in_dims, vectorized=False)

    def batched_gradient(
        self,
        terms: Callable[..., Terms],
        position: Tensor,
        indices: Indices,
        chain_values: Tensors,
        tensors: Data,
    ) -> tuple[Tensor, Terms]:
        """Differentiate all chains: the gradient (C, D) of the log-density, and the terms (C,).

        Args:
            terms: maps one chain's (position, indices, chain values, tensors) to its `Terms`.
            position: (C, D).
            indices: (C, B) for each subsampled plate.
            chain_values: (C, ...) each.
            tensors: the program's, with a leading chain dimension if `data_per_chain`, or a list
                of those of each chain.
        """

        def objective(
            point: Tensor, subset: Indices, own: Tensors, data: Tensors
        ) -> tuple[Tensor, Terms]:
            value = terms(point, subset, own, data)
            return value.log_density, value

        gradient, found = self.over_chains(
            gradient_of(objective, functional=self.way.functional),
            position,
            indices,
            chain_values,
            tensors,
            in_dims=(0, 0, 0, 0 if self.data_per_chain else None),
        )
        return gradient, found

    def constrain(self, positions: Tensor) -> dict[str, Tensor]:
        """Map positions (C, S, D) to values (C, S, *shape) of latent and deterministic sites."""
        if self.is_static and not self.deterministic:
            return self.split(positions)
        num_chains, num_draws, _ = positions.shape
        flat = positions.flatten(0, 1)
        own = tuple(value.repeat_interleave(num_draws, 0) for value in self.chain_values)

        def values(point: Tensor, own: Tensors) -> dict[str, Tensor]:
            return self.run(point, None, own).values

        with torch.no_grad():
            found = self.outside_steps(values, flat, own, in_dims=(0, 0))
        lead = (num_chains, num_draws)
        return {name: value.reshape(*lead, *value.shape[1:]) for name, value in found.items()}
