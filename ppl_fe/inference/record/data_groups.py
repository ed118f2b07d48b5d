"""The data beside the draws: ArviZ's groups `observed_data` and `constant_data`."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from ppl_fe.inference.program.density import Density
from ppl_fe.inference.program.dimensions import Labels
from ppl_fe.inference.program.simulate import observed_values, to_numpy

# Of more data a copy beside the draws would be a burden, and of more minibatches a wait.
MOST_VALUES, MOST_MINIBATCHES = 10**7, 1000


def data_groups(density: Density) -> dict[str, xr.Dataset]:
    """Collect what a program observes, and the other tensors among its arguments.

    Observed sites have their values on all the data, through plates that subsample. Data of more
    than 10⁷ values, or of more than a thousand minibatches, are left out.

    Args:
        density: of the program, with the names of axes.

    Returns:
        Group -> data set; none of those that would be empty.
    """
    minibatches = prod(-(-plate.size // plate.subsample_size) for plate in density.subsamples)
    sizes = [tensor.numel() for tensor in density.tensors]
    if density.data_per_chain or sum(sizes) > MOST_VALUES or minibatches > MOST_MINIBATCHES:
        return {}
    origin = torch.zeros(1, 1, density.num_parameters, dtype=density.dtype, device=density.device)
    observed = observed_values(
        lambda: density.program(density.tensors, {}),
        {name: value[0, 0] for name, value in density.constrain(origin).items()},
        density.subsamples,
        density.device,
    )
    constant = {
        name: to_numpy(tensor)
        for name, tensor in zip(density.program.variables, density.tensors, strict=True)
    }
    others = {
        name: values
        for name, values in constant.items()
        if not any(np.array_equal(values, own) for own in observed.values())
    }
    groups = {"observed_data": observed, "constant_data": others}
    return {group: dataset(arrays, density.labels) for group, arrays in groups.items() if arrays}


def dataset(
    arrays: Mapping[str, NDArray[Any]],
    labels: Labels,
    lead: tuple[str, ...] = (),
    coords: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Make a data set of arrays by the names of their axes.

    Args:
        arrays: site -> values.
        labels: names of axes, and of the entries along them where there are as many.
        lead: names of the first axes of all arrays. Default none.
        coords: labels along those. Default none.
    """
    own = dict(coords or {})
    data = {
        name: ((*lead, *labels.of(name, array.ndim - len(lead))), array)
        for name, array in arrays.items()
    }
    sizes = {
        dim: size
        for dims, array in data.values()
        for dim, size in zip(dims, array.shape, strict=True)
    }
    along = labels.along(sorted(sizes), [*own])
    fitting = {dim: held for dim, held in along.items() if len(held) == sizes[dim]}
    return xr.Dataset(data, coords=own | fitting)
