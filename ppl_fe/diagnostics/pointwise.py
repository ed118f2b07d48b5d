"""log p(y_i | θ) of every datum under every draw: what ArviZ compares models by."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from ppl_fe.arguments import named_arguments
from ppl_fe.diagnostics.scores import arguments_of, density_of, positions_of
from ppl_fe.inference.kernels import Kernel
from ppl_fe.inference.program.density import Density, Indices
from ppl_fe.inference.record.zarr_folder import dimension_names
from ppl_fe.inference.step.batchable import batchable

VALUES_AT_ONCE = 2**22  # of log-densities: the program is batched over as many draws as that takes


@named_arguments
def add_log_likelihood(
    draws: xr.DataTree, model: Kernel | Callable[..., Any], data: Any
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
        data: the program's arguments, as they were given to `fe.sample`: a tuple of them, a
            mapping by keyword, or the single one.

    Returns:
        A new DataTree, whose other groups are those of `draws`; each observed site is a variable
        (chain, draw, *plates).

    Raises:
        ValueError: the draws are not those of this program with these arguments, or were kept in
            part only; the program observes nothing.
        TypeError: `data` are not its arguments.

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
        {'chain': 4, 'draw': 200, 'y_dim_0': 20}
        >>> round(float(azs.loo(with_terms).elpd))
        -23
    """
    args, kwargs = arguments_of(model, data)
    density = density_of(model, draws, args, kwargs)
    positions = positions_of(density, draws)
    lead = positions.shape[:2]
    arrays = log_densities(batchable(density, positions[:, 0]), positions.flatten(0, 1))
    if not arrays:
        raise ValueError("the model has no observed site: there is no likelihood of any datum")
    posterior = draws["posterior"].to_dataset()
    terms = {
        name: (dimension_names(name, 1 + array.ndim), array.reshape(*lead, *array.shape[1:]))
        for name, array in arrays.items()
    }
    kept = {name: posterior.coords[name] for name in ("chain", "draw")}
    found = draws.copy()
    found["log_likelihood"] = xr.DataTree(xr.Dataset(terms, coords=kept))
    return found


def log_densities(density: Density, positions: Tensor) -> dict[str, NDArray[Any]]:
    """Compute each observed site's terms, (S, *plates), at positions (S, D), on all the data."""
    found: dict[str, NDArray[Any]] = {}
    sizes = {plate.name: plate.size for plate in density.subsamples}
    for subsets in _index_sets(density):
        named = dict(zip(sizes, subsets, strict=True))
        first = density.run(positions[0], subsets).pointwise
        each = sum(site.log_prob.numel() for site in first.values())
        at_once = max(1, VALUES_AT_ONCE // max(1, each))
        for start in range(0, len(positions), at_once):
            rows = slice(start, start + at_once)
            terms = _terms(density, positions[rows], subsets)
            for name, (one, axes) in first.items():
                if name not in found:
                    shape = list(one.shape)
                    for plate, axis in axes.items():
                        shape[axis] = sizes[plate]
                    empty = np.empty((len(positions), *shape), terms[name].numpy().dtype)
                    found[name] = empty
                places = [rows, *[slice(None)] * one.dim()]
                for plate, axis in axes.items():
                    begin = int(named[plate][0])
                    places[axis] = slice(begin, begin + len(named[plate]))
                found[name][tuple(places)] = terms[name].numpy()
    return found


def _terms(density: Density, positions: Tensor, subsets: Indices) -> dict[str, Tensor]:
    """Compute each observed site's terms on one minibatch, (S', *plates)."""

    def one(position: Tensor) -> dict[str, Tensor]:
        run = density.run(position, subsets)
        return {name: site.log_prob for name, site in run.pointwise.items()}

    with torch.no_grad():
        values = density.over_chains(one, positions, in_dims=(0,))
    return {name: value.cpu() for name, value in values.items()}


def _index_sets(density: Density) -> Iterator[Indices]:
    """Give runs of B indices of each subsampled plate that cover it, the last reaching its end."""
    runs = []
    for plate in density.subsamples:
        size, batch = plate.size, plate.subsample_size
        begins = sorted({*range(0, size - batch, batch), size - batch})
        runs.append([torch.arange(k, k + batch, device=density.device) for k in begins])
    yield from itertools.product(*runs)
