"""What a program predicts: under every draw of its posterior, and before it has seen the data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from ppl_fe.arguments import forwards_arguments, require_integer
from ppl_fe.diagnostics.scores import bound, labels_of, program_of
from ppl_fe.inference.program.dimensions import Labels
from ppl_fe.inference.program.explain import called
from ppl_fe.inference.program.minibatches import in_pieces, index_sets, put_together
from ppl_fe.inference.program.simulate import (
    Simulation,
    at_every_draw,
    observed_values,
    simulate,
    to_numpy,
    whole_numbers,
)
from ppl_fe.inference.pyro_kernel import PyroKernel
from ppl_fe.inference.record.data_groups import dataset

Arrays = dict[str, NDArray[Any]]
Values = Mapping[str, Tensor]


@forwards_arguments
def add_posterior_predictive(
    draws: xr.DataTree,
    model: PyroKernel | Callable[..., Any],
    *args: Any,
    seed: int = 0,
    **kwargs: Any,
) -> xr.DataTree:
    """Add a group `posterior_predictive` to draws: data that the program makes under each of them.

    One value y_i ~ p(y | θ_s) a chain, draw and datum, on all the data: plates that subsample are
    gone through whole. Observed sites are drawn whatever `obs=` gives them. Discrete sites that
    were summed out are drawn, too. A program that observes nothing with these arguments
    (`y=None`, new inputs) predicts: what the draws do not hold is drawn, and goes with the
    computed sites to a group `predictions`. With `obs=frame.get("y")` in the program a data frame
    without that column does.

    Args:
        draws: of `fe.sample`; thin long runs first, `draws.isel(draw=slice(None, None, 10))`, as
            C·S·N numbers are kept.
        model: the Pyro program of the draws, or the kernel that made them.
        *args: the program's arguments, as they were given to `fe.sample`, or new ones.
        seed: equal seeds give equal predictions on the same machine. Default 0.
        **kwargs: those given by keyword.

    Returns:
        A new DataTree, whose other groups are those of `draws`; each site is a variable
        (chain, draw, *its dimensions). `observed_data` is added where the draws lack it.

    Raises:
        TypeError: these are not the program's arguments.
        ValueError: the draws are not those of this program with these arguments, or were kept in
            part only; there is nothing to predict.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> import ppl_fe as fe
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> y = torch.linspace(-1, 1, 20)
        >>> draws = fe.sample(fe.BAOAB(model), y, num_samples=200, progress_bar=False)
        >>> with_predictions = fe.add_posterior_predictive(draws, model, y)
        >>> dict(with_predictions.posterior_predictive["y"].sizes)
        {'chain': 4, 'draw': 200, 'data': 20}
    """
    require_integer("seed", seed, 0)
    if "posterior" not in draws.children:
        raise ValueError("draws hold no group 'posterior'; give what fe.sample returns")
    call = _call(model, args, kwargs)
    posterior = draws["posterior"].to_dataset()
    lead = posterior.sizes["chain"], posterior.sizes["draw"]
    values = {
        str(name): torch.tensor(held.values).flatten(0, 1)
        for name, held in posterior.data_vars.items()
    }
    with torch.random.fork_rng(devices=[]):
        first = simulate(call, {name: value[0] for name, value in values.items()})
    values = _checked(first, values, draws)
    wanted = ("observed",) if first.observed else ("latent", "computed")
    arrays = _predicted(call, values, lead[0] * lead[1], first, wanted, seed)
    arrays = {name: array for name, array in arrays.items() if name not in values}
    if not arrays:
        raise ValueError("the model observes nothing with these arguments: nothing to predict")
    labels = labels_of(draws, first.dims)
    found = draws.copy()
    group = "posterior_predictive" if first.observed else "predictions"
    shaped = {name: array.reshape(*lead, *array.shape[1:]) for name, array in arrays.items()}
    kept = {name: posterior.coords[name] for name in ("chain", "draw")}
    found[group] = xr.DataTree(dataset(shaped, labels, ("chain", "draw"), kept))
    if first.observed and "observed_data" not in draws.children:
        seen = observed_values(
            call,
            {name: value[0] for name, value in values.items()},
            first.subsamples,
            _device(first),
        )
        found["observed_data"] = xr.DataTree(dataset(seen, labels))
    return found


@forwards_arguments
def prior_predictive(
    model: PyroKernel | Callable[..., Any],
    *args: Any,
    num_samples: int = 500,
    seed: int = 0,
    **kwargs: Any,
) -> xr.DataTree:
    """Draw from a program's prior, and the data that it makes under each of these draws.

    Args:
        model: a Pyro program, or a kernel of one.
        *args: the program's arguments, as they are given to `fe.sample`. Observed sites are drawn
            whatever `obs=` gives them.
        num_samples: draws. Default 500.
        seed: equal seeds give equal draws on the same machine. Default 0.
        **kwargs: the program's arguments that are given by keyword.

    Returns:
        An `xarray.DataTree` with the groups `prior` (latent and computed sites),
        `prior_predictive` (observed sites, on all the data) and `observed_data`, of one chain.

    Raises:
        TypeError: these are not the program's arguments.
        ValueError: an improper prior; a latent site in a plate that subsamples.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> import ppl_fe as fe
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> tree = fe.prior_predictive(model, torch.zeros(20), num_samples=100)
        >>> dict(tree.prior_predictive["y"].sizes)
        {'chain': 1, 'draw': 100, 'data': 20}
    """
    require_integer("num_samples", num_samples, 1)
    require_integer("seed", seed, 0)
    call = _call(model, args, kwargs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first = simulate(call, {})
        inside = [name for name, drawn in first.latent.items() if drawn.axes]
        if inside:
            raise ValueError(
                f"latent site {inside[0]!r} lies inside the subsampled plate "
                f"{next(iter(first.latent[inside[0]].axes))!r}: its values change from minibatch "
                "to minibatch; drop subsample_size"
            )
        some = index_sets(first.subsamples, _device(first))[0]
        prior = at_every_draw(call, {}, num_samples, some, ["latent"])
    arrays = _predicted(call, prior, num_samples, first, ("observed", "computed"), seed + 1)
    latent = whole_numbers({n: to_numpy(value) for n, value in prior.items()}, first.discrete)
    computed = {name: arrays.pop(name) for name in first.computed}
    groups = {"prior": latent | computed, "prior_predictive": arrays}
    labels = Labels(first.dims)
    kept = {"chain": [0], "draw": np.arange(num_samples)}
    found = {
        group: dataset(
            {name: array[None] for name, array in own.items()}, labels, ("chain", "draw"), kept
        )
        for group, own in groups.items()
        if own
    }
    if first.observed:
        one = {name: value[0] for name, value in prior.items()}
        seen = observed_values(call, one, first.subsamples, _device(first))
        found["observed_data"] = dataset(seen, labels)
    tree = xr.DataTree.from_dict(found)
    tree.attrs = {"inference_library": "ppl_fe", "seed": seed}
    return tree


def _call(
    model: PyroKernel | Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Callable[[], Any]:
    """Make the call of the program, its arguments checked.

    Raises:
        TypeError: they are not its arguments.
    """
    bound(model, args, kwargs)
    program = called(program_of(model), args, kwargs)
    return lambda: program(program.tensors, {})


def _checked(first: Simulation, values: Values, draws: xr.DataTree) -> dict[str, Tensor]:
    """Give the draws of the program's latent sites.

    Raises:
        ValueError: the draws are of another program.
    """
    own = set(first.latent)
    drawn = {*json.loads(draws.attrs["sites"])} if "sites" in draws.attrs else own & set(values)
    missing = own - set(values) - first.discrete if first.observed else set()
    if drawn - own or missing:
        raise ValueError(
            f"draws are of another program: they have the sites {sorted(drawn)}, the model has "
            f"{sorted(own)}; give the model that the draws are of, and sites that were kept whole"
        )
    return {name: values[name] for name in first.latent if name in values}


def _predicted(
    call: Callable[[], Any],
    values: Values,
    num_draws: int,
    first: Simulation,
    kinds: Sequence[str],
    seed: int,
) -> Arrays:
    """Draw the sites of these kinds at every draw, (S, ...), on all the data."""
    of_kind = {name: own for kind in kinds for name, own in getattr(first, kind).items()}
    each = sum(drawn.value.numel() for drawn in of_kind.values())
    parts = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for subsets in index_sets(first.subsamples, _device(first)):

            def drawn(rows: slice, subsets: Values = subsets) -> Arrays:
                some = {name: value[rows] for name, value in values.items()}
                found = at_every_draw(call, some, rows.stop - rows.start, subsets, kinds)
                return {name: to_numpy(value) for name, value in found.items()}

            parts.append((subsets, in_pieces(num_draws, each, drawn)))
    axes = {name: drawn.axes for name, drawn in of_kind.items()}
    return whole_numbers(put_together(parts, axes, first.subsamples), first.discrete)


def _device(first: Simulation) -> torch.device:
    every = {**first.latent, **first.observed}.values()
    return next((drawn.value.device for drawn in every), torch.device("cpu"))
