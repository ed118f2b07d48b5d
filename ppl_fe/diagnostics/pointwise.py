"""log p(y_i | θ) of every datum under every draw: what ArviZ compares models by."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from ppl_fe.arguments import forwards_arguments
from ppl_fe.diagnostics.scores import bound, density_of, labels_of, positions_of, program_of
from ppl_fe.inference.program.density import Density, Indices
from ppl_fe.inference.program.dimensions import Labels
from ppl_fe.inference.program.minibatches import in_pieces, index_sets, put_together
from ppl_fe.inference.pyro_kernel import PyroKernel
from ppl_fe.inference.record.data_groups import dataset
from ppl_fe.inference.step.batchable import batchable
from ppl_fe.renamed import warn_of_old_name

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def _takes_the_old_form(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Make the function take the program's arguments as one, a tuple or mapping, or as `data=`."""

    @functools.wraps(function)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        found = _old_form(args, kwargs)
        if found is None:
            return function(*args, **kwargs)
        warn_of_old_name(
            "add_log_likelihood with the program's arguments as one",
            "add_log_likelihood(draws, model, *args, **kwargs), with those of fe.sample,",
        )
        return function(*args[:2], *found[0], **found[1])  # type: ignore[arg-type]

    return wrapped


def _old_form(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], Mapping[str, Any]] | None:
    """Find the arguments that were given as one; None where they were not."""
    by_name = len(args) == 2 and {*kwargs} == {"data"}
    if not by_name and (len(args) != 3 or kwargs or not isinstance(args[2], tuple | Mapping)):
        return None
    given = kwargs["data"] if by_name else args[2]
    old: tuple[tuple[Any, ...], Mapping[str, Any]] = (
        ((), given)
        if isinstance(given, Mapping)
        else (given if isinstance(given, tuple) else (given,), {})
    )
    try:
        own = inspect.signature(program_of(args[1])).parameters
        bound(args[1], *old)
    except (TypeError, ValueError):  # arguments of today's form, or no signature
        return None
    return None if by_name and "data" in own else old


@_takes_the_old_form
@forwards_arguments
def add_log_likelihood(
    draws: xr.DataTree, model: PyroKernel | Callable[..., Any], *args: Any, **kwargs: Any
) -> xr.DataTree:
    """Add a group `log_likelihood` to draws, as `az.loo` and `az.compare` need it.

    One value log p(y_i | θ_s) a chain, draw and datum, on all the data: plates that subsample are
    gone through whole. A weight that the program gives by `poutine.scale` is part of it, and a
    masked datum has the value 0, so that the group's sum over a draw is the program's
    log-likelihood. The power β of a tempered posterior is left out.

    Args:
        draws: of `fe.sample`; thin long runs first, `draws.isel(draw=slice(None, None, 10))`, as
            C·S·N numbers are kept.
        model: the Pyro program of the draws, or the kernel that made them.
        *args: the program's arguments, as they were given to `fe.sample`.
        **kwargs: those given by keyword.

    Returns:
        A new DataTree, whose other groups are those of `draws`; each observed site is a variable
        (chain, draw, *plates).

    Raises:
        ValueError: the draws are not those of this program with these arguments, or were kept in
            part only; the program observes nothing.
        TypeError: these are not the program's arguments.

    Example:
        >>> import arviz_stats as azs, pyro, pyro.distributions as dist, torch
        >>> import ppl_fe as fe
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> y = torch.linspace(-1, 1, 20)
        >>> draws = fe.sample(fe.BAOAB(model), y, num_samples=200, progress_bar=False)
        >>> with_terms = fe.add_log_likelihood(draws, model, y)
        >>> dict(with_terms.log_likelihood["y"].sizes)
        {'chain': 4, 'draw': 200, 'data': 20}
        >>> round(float(azs.loo(with_terms).elpd))
        -23
    """
    bound(model, args, kwargs)
    density = density_of(model, draws, args, kwargs)
    positions = positions_of(density, draws)
    lead = positions.shape[:2]
    arrays = log_densities(batchable(density, positions[:, 0]), positions.flatten(0, 1))
    if not arrays:
        raise ValueError("the model has no observed site: there is no likelihood of any datum")
    posterior = draws["posterior"].to_dataset()
    labels = labels_of(draws, density.labels.dims)
    plates = {name: labels.dims.get(name, ())[: array.ndim - 1] for name, array in arrays.items()}
    found = draws.copy()
    found["log_likelihood"] = xr.DataTree(
        dataset(
            {name: array.reshape(*lead, *array.shape[1:]) for name, array in arrays.items()},
            Labels(plates, labels.coords),
            ("chain", "draw"),
            {name: posterior.coords[name] for name in ("chain", "draw")},
        )
    )
    return found


def log_densities(density: Density, positions: Tensor) -> dict[str, NDArray[Any]]:
    """Compute each observed site's terms, (S, *plates), at positions (S, D), on all the data."""
    parts, axes = [], {}
    for named in index_sets(density.subsamples, density.device):
        subsets = tuple(named.values())
        first = density.run(positions[0], subsets).pointwise
        each = sum(site.log_prob.numel() for site in first.values())

        def terms(rows: slice, subsets: Indices = subsets) -> dict[str, NDArray[Any]]:
            return _terms(density, positions[rows], subsets)

        parts.append((named, in_pieces(len(positions), each, terms)))
        axes = {name: site.axes for name, site in first.items()}
    return put_together(parts, axes, density.subsamples)


def _terms(density: Density, positions: Tensor, subsets: Indices) -> dict[str, NDArray[Any]]:
    """Compute each observed site's terms on one minibatch, (S', *plates)."""

    def one(position: Tensor) -> dict[str, Tensor]:
        run = density.run(position, subsets)
        return {name: site.log_prob for name, site in run.pointwise.items()}

    with torch.no_grad():
        values = density.over_chains(one, positions, in_dims=(0,))
    return {name: value.cpu().numpy() for name, value in values.items()}
