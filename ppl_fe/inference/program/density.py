"""A Pyro program becomes a log-density on unconstrained space.

The density is a pure function of one position vector, the index sets of the program's
subsampled plates, and the tensors the program was called with, so that it can be
differentiated, batched over chains and traced. Pyro's internals are in `program.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ppl_fe.inference.program.explain import is_array, raise_explained, refuse_non_finite
from ppl_fe.inference.program.trace import (
    ProgramRun,
    Site,
    Subsample,
    TrialRunError,
    prototype,
    run_program,
)


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


Tensors = tuple[Tensor, ...]
Indices = Tensors  # into the data, one set a plate


class Terms(NamedTuple):
    """What one evaluation of a program gives.

    log_density: log p(constrained values, data) + log |Jacobian|, with the plates' N/B scale.
    log_likelihood: the observed sites' part with the plates' scale but without any other
        `poutine.scale`, so that a tempered program still reports its plain likelihood.
    """

    log_density: Tensor
    log_likelihood: Tensor


class Density:
    """The log-density of a Pyro program on unconstrained space.

    log p(u) = log p(x(u), data) + log |det dx/du|, x = T(u), where T maps the real line to each
    site's support (`biject_to`); a support may depend on other sites. Discrete latent sites and
    latent sites inside a subsampled plate have no such density and are refused by name.

    Args:
        model: a Pyro program.
        args, kwargs: what the program is called with; tensors among them become inputs of the
            traced graph rather than constants.
        chain_kwargs: keyword arguments that differ from chain to chain, each a tensor with a
            leading chain dimension C (an anchor a chain, an inverse temperature a chain).
        data_per_chain: the tensors among the arguments are minibatches drawn elsewhere: evaluations
            get them with a leading chain dimension, and subsampled plates take them as they come.
        vectorized: batch the program over chains with `vmap`; otherwise run chain after chain.

    Attributes:
        num_parameters: D, the length of a position.
        sites: the latent sites in program order.
        subsamples: the plates that subsample, each with its size N and subsample size B.
        num_data: n of the loss: the size of the largest plate around an observed site, or 1.

    Raises:
        ValueError: no latent site; a discrete latent site; a latent site inside a subsampled
            plate; a program that fails on the data given, with the arguments to change where they
            are no tensors or of another dtype than it wants; NaN or infinity in the arguments.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(y):
        ...     scale = pyro.sample("scale", dist.Exponential(1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(0.0, scale), obs=y)
        >>> density = Density(model, (torch.zeros(3),))
        >>> density.num_parameters, density.num_data
        (1, 3)
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
        self.model = model
        self.chain_kwargs = dict(chain_kwargs or {})
        self.data_per_chain, self.vectorized, self.traceable = data_per_chain, vectorized, True
        leaves, self._structure = pytree.tree_flatten((tuple(args), dict(kwargs or {})))
        self._leaves = leaves
        self._tensor_places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self.tensors: tuple[Tensor, ...] = tuple(leaves[i].detach() for i in self._tensor_places)
        refuse_non_finite(self.tensors)
        first = {name: value[0] for name, value in self.chain_kwargs.items()}
        try:
            run = prototype(
                lambda: self._call(self.tensors, list(first.values())),
                self.tensors,
                gradient=any(map(is_array, leaves)),
            )
        except TrialRunError as failed:
            raise_explained(failed, partial(model, **first), args, kwargs or {})
        self.sites: tuple[Site, ...] = run.sites
        self._plates: tuple[Subsample, ...] = run.subsamples
        # Plates whose index sets are inputs; with minibatches drawn elsewhere there are none.
        self.subsamples: tuple[Subsample, ...] = () if data_per_chain else run.subsamples
        self.num_data: int = run.num_data
        self.num_parameters = sum(site.size for site in self.sites)
        self.dtype, self.device, self.is_static = run.dtype, run.device, run.is_static
        # Constrained -> unconstrained at the trial run, as Pyro's kernels carry them; exact
        # unless a support depends on another site.
        self.transforms, self.deterministic = run.transforms, run.deterministic

    @property
    def chain_values(self) -> tuple[Tensor, ...]:
        """The values of `chain_kwargs` in order, each (C, ...)."""
        return tuple(self.chain_kwargs.values())

    def __call__(
        self,
        position: Tensor,
        indices: Indices | None = None,
        chain_values: tuple[Tensor, ...] | None = None,
        tensors: tuple[Tensor, ...] | None = None,
    ) -> Terms:
        """One chain: position (D,), one index set (B,) a subsampled plate -> two scalars."""
        run = self.run(position, indices, chain_values, tensors)
        return Terms(run.log_density, run.log_likelihood)

    def run_as(self, *, vectorized: bool, traceable: bool = True) -> Density:
        """The same density, batched over chains or not; `traceable` if it makes one graph."""
        twin = copy.copy(self)
        twin.vectorized, twin.traceable = vectorized, traceable
        return twin

    def over_chains(
        self, function: Callable[..., Any], *arguments: Any, in_dims: tuple[int | None, ...]
    ) -> Any:
        """Apply a function of one chain to all, by `vmap` or chain after chain.

        Arguments whose entry of `in_dims` is 0 (trees of tensors), and the results, have a leading
        chain dimension.
        """
        if self.vectorized:
            return torch.func.vmap(function, in_dims=in_dims, randomness="error")(*arguments)
        chained = [a for a, dim in zip(arguments, in_dims, strict=True) if dim == 0]
        results = []
        for chain in range(len(pytree.tree_leaves(chained)[0])):
            own = [
                pytree.tree_map(itemgetter(chain), argument) if dim == 0 else argument
                for argument, dim in zip(arguments, in_dims, strict=True)
            ]
            results.append(function(*own))
        return pytree.tree_map(lambda *values: torch.stack(values), *results)

    def batched_gradient(
        self,
        terms: Callable[..., Terms],
        position: Tensor,
        indices: Indices,
        chain_values: tuple[Tensor, ...],
        tensors: tuple[Tensor, ...],
    ) -> tuple[Tensor, Terms]:
        """All chains: position (C, D), indices (C, B) each -> gradient (C, D), terms (C,).

        `terms` maps one chain's (position, indices, chain values, tensors) to its `Terms`.
        """

        def objective(
            point: Tensor,
            subset: Indices,
            own: tuple[Tensor, ...],
            data: tuple[Tensor, ...],
        ) -> tuple[Tensor, Terms]:
            value = terms(point, subset, own, data)
            return value.log_density, value

        gradient, found = self.over_chains(
            torch.func.grad(objective, has_aux=True),
            position,
            indices,
            chain_values,
            tensors,
            in_dims=(0, 0, 0, 0 if self.data_per_chain else None),
        )
        return gradient, found

    def constrain(self, positions: Tensor) -> dict[str, Tensor]:
        """Positions (C, S, D) -> each latent (and deterministic) site's values (C, S, *shape)."""
        if self.is_static and not self.deterministic:
            return self.split(positions)
        num_chains, num_draws, _ = positions.shape
        flat = positions.flatten(0, 1)
        own = tuple(value.repeat_interleave(num_draws, 0) for value in self.chain_values)

        def values(point: Tensor, own: tuple[Tensor, ...]) -> dict[str, Tensor]:
            return self.run(point, None, own).values

        with torch.no_grad():
            found = self.over_chains(values, flat, own, in_dims=(0, 0))
        lead = (num_chains, num_draws)
        return {name: value.reshape(*lead, *value.shape[1:]) for name, value in found.items()}

    def split(self, position: Tensor) -> dict[str, Tensor]:
        """Positions (..., D) -> site name -> unconstrained values (..., *unconstrained shape)."""
        return split(self.sites, position)

    def join(self, unconstrained: Mapping[str, Tensor]) -> Tensor:
        """The inverse of `split`: site name -> (C, *unconstrained shape) becomes (C, D)."""
        return join(self.sites, unconstrained, self.dtype).to(self.device)

    def run(
        self,
        position: Tensor,
        indices: Indices | None = None,
        chain_values: tuple[Tensor, ...] | None = None,
        tensors: tuple[Tensor, ...] | None = None,
    ) -> ProgramRun:
        """All that `__call__` sees: constrained values and the data's terms, too."""
        if not indices:
            indices = tuple(
                torch.arange(plate.subsample_size, device=self.device) for plate in self._plates
            )
        chain_values = chain_values or tuple(value[0] for value in self.chain_values)
        named = {plate.name: subset for plate, subset in zip(self._plates, indices, strict=True)}
        data = self.tensors if tensors is None else tensors
        return run_program(lambda: self._call(data, chain_values), self.split(position), named)

    def _call(self, tensors: Sequence[Tensor], chain_values: Sequence[Tensor]) -> Any:
        leaves = list(self._leaves)
        for place, tensor in zip(self._tensor_places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self._structure)
        own = dict(zip(self.chain_kwargs, chain_values, strict=True))
        return self.model(*args, **kwargs, **own)
