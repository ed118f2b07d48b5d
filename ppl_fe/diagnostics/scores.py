"""Scores ∇log p of draws on all the data: what the draws should have followed, without noise."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import xarray as xr
from torch import Tensor
from torch.utils.data import DataLoader

from ppl_fe.data import LoaderData
from ppl_fe.inference.kernels import Kernel
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.program.dimensions import Dimensions, Labels
from ppl_fe.inference.pyro_kernel import PyroKernel
from ppl_fe.inference.step.batchable import batchable
from ppl_fe.inference.step.gradients import exact_evaluation

ROUND_TRIP = 1e-3  # of a site's largest value; float32 makes 1e-5 of a logarithm and back


class ScoredDraws(NamedTuple):
    """positions (C, S, D) on unconstrained space and ∇log p there, likewise."""

    positions: Tensor
    scores: Tensor


def full_data_scores(
    model: Kernel | Callable[..., Any], draws: xr.DataTree, *args: Any, **kwargs: Any
) -> Tensor:
    """Compute ∇log p at every draw, (C, S, D), in the coordinates in which the chains moved.

    Those are the sites in program order, each on unconstrained space, so that the score holds the
    gradient of log |dx/du| besides those of prior and likelihood. Plates that subsample are
    gone through whole. The target is the program's p, whatever temperature the draws were made at:
    draws of p^{1/T} have the score ∇log p / T. A draw costs one gradient on all the data, so thin
    first: `thinned`, or `draws.isel(draw=slice(None, None, 10))`.

    Args:
        model: the Pyro program of the draws, or the kernel that made them.
        draws: of `fe.sample`.
        *args: the program's arguments, as they were given to `fe.sample`.
        **kwargs: those given by keyword.

    Returns:
        (C, S, D), in the precision of the program.

    Raises:
        ValueError: the draws are not those of this program with these arguments; a site kept in
            part only; a value on the edge of its support, as rounding makes them; a support that
            depends on another site; a score that is not finite.
        TypeError: data in a `DataLoader`.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> import ppl_fe as fe
        >>> def model(y):
        ...     scale = pyro.sample("scale", dist.Exponential(1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(0.0, scale), obs=y)
        >>> draws = fe.sample(fe.BAOAB(model), torch.ones(3), num_samples=5, progress_bar=False)
        >>> scores = full_data_scores(model, draws, torch.ones(3))
        >>> scale = torch.tensor(draws.posterior["scale"].values)
        >>> # log p(u) = -scale - 3 log(scale) - 3/(2 scale²) + u, where u = log(scale)
        >>> bool(torch.allclose(scores[..., 0], 3 / scale**2 - scale - 2, rtol=1e-3, atol=1e-3))
        True
    """
    return scored_draws(model, draws, args, kwargs).scores


def scored_draws(
    model: Kernel | Callable[..., Any],
    draws: xr.DataTree,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> ScoredDraws:
    """Compute `full_data_scores` and the positions at which they are taken."""
    density = density_of(model, draws, args, kwargs or {})
    positions = positions_of(density, draws)
    density = batchable(density, positions[:, 0])
    columns = [exact_evaluation(density, column).gradient for column in positions.unbind(1)]
    scores = torch.stack(columns, 1)
    if not torch.isfinite(scores).all():
        chain, draw, place = (~torch.isfinite(scores)).nonzero()[0].tolist()
        raise ValueError(
            f"the score of chain {chain}, draw {draw} is not finite in coordinate {place}; check "
            "the data, and look at that draw"
        )
    return ScoredDraws(positions, scores)


def density_of(
    model: Kernel | Callable[..., Any],
    draws: xr.DataTree,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Density:
    """Build the program's density on all the data, batched over chains as for the draws.

    Raises:
        TypeError: data in a `DataLoader`.
    """
    if any(isinstance(value, DataLoader | LoaderData) for value in args):
        raise TypeError(
            "terms of all the data need the data as tensors, not as a DataLoader; give the "
            "tensors that it draws from"
        )
    sequential = draws.attrs.get("chain_method") == "sequential"
    return Density(program_of(model), args, kwargs, vectorized=not sequential)


def arguments_of(
    model: Kernel | Callable[..., Any], data: Any
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Split `data` into arguments: a tuple of them, a mapping by keyword, else the single one.

    Raises:
        TypeError: they are not those that the program takes.

    Example:
        >>> def model(y, size=None):
        ...     pass
        >>> arguments_of(model, 3.0), arguments_of(model, (3.0, 2)), arguments_of(model, {"y": 3.0})
        (((3.0,), {}), ((3.0, 2), {}), ((), {'y': 3.0}))
    """
    kwargs = data if isinstance(data, Mapping) else {}
    args = () if isinstance(data, Mapping) else data if isinstance(data, tuple) else (data,)
    try:
        bound(model, args, kwargs)
    except TypeError as error:
        several = isinstance(data, tuple | list | Mapping)
        raise TypeError(
            f"{error}: a tuple of all, a mapping of those given by keyword, or the single one; "
            f"got a {type(data).__name__}{f' of {len(data)}' if several else ''}"
        ) from error
    return args, kwargs


def bound(
    model: Kernel | Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Refuse arguments that are not those of the model's program.

    Raises:
        TypeError: as it says.
    """
    try:
        signature = inspect.signature(program_of(model))
    except (TypeError, ValueError):  # of a program without a signature
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        bare = [own.replace(annotation=own.empty) for own in signature.parameters.values()]
        raise TypeError(
            f"data must be the arguments {inspect.Signature(bare)} of the model's program ({error})"
        ) from error


def program_of(model: Kernel | Callable[..., Any]) -> Callable[..., Any]:
    """Give the program of a kernel, or the program itself."""
    return model.program if isinstance(model, PyroKernel) else model


def thinned(draws: xr.DataTree, most_draws: int) -> xr.DataTree:
    """Keep at most `most_draws` draws of all chains together, evenly spaced, the last among them.

    Every chain gives the same number, ⌊most_draws/C⌋; of more than `most_draws` chains, as many
    are kept, evenly, with their last draw.
    """
    posterior = draws["posterior"].to_dataset()
    num_chains, num_draws = posterior.sizes["chain"], posterior.sizes["draw"]
    chains = _even(num_chains, min(num_chains, most_draws))
    kept = _even(num_draws, min(num_draws, max(1, most_draws // num_chains)))
    chosen = posterior.isel(chain=chains, draw=kept)
    tree = xr.DataTree.from_dict({"posterior": chosen})
    tree.attrs.update(draws.attrs)
    return tree


def _even(size: int, count: int) -> list[int]:
    """Choose `count` of 0 ... size−1, evenly spaced, the last one among them.

    Example:
        >>> _even(10, 3)
        [3, 6, 9]
    """
    stride = size // count
    return list(range(size - 1 - (count - 1) * stride, size, stride))


def positions_of(density: Density, draws: xr.DataTree) -> Tensor:
    """Find the unconstrained positions (C, S, D), and check them by the way back."""
    if "posterior" not in draws.children:
        raise ValueError("draws hold no group 'posterior'; give what fe.sample returns")
    posterior = draws["posterior"].to_dataset()
    parts = []
    for site in density.sites:
        if site.name not in posterior:
            raise ValueError(
                f"draws hold no site {site.name!r} of the model but "
                f"{sorted(map(str, posterior.data_vars))}; give the model that the draws are of, "
                "and sites that were kept whole"
            )
        values = torch.as_tensor(posterior[site.name].to_numpy()).to(density.device, density.dtype)
        if tuple(values.shape[2:]) != site.support_shape:
            raise ValueError(
                f"a draw of site {site.name!r} has shape {tuple(values.shape[2:])}, in the model "
                f"it is {site.support_shape}; give the arguments of the run, and a run whose "
                "sites were kept whole"
            )
        # Transforms of whole vectors (a simplex) know leading dimensions, but not two of them.
        unconstrained = density.transforms[site.name](values.flatten(0, 1))
        if not torch.isfinite(unconstrained).all():
            raise ValueError(
                f"site {site.name!r} has draws on the edge of its support or beyond, rounded to "
                "it perhaps; sample its logarithm, or run the model in double precision"
            )
        parts.append(unconstrained.reshape(*values.shape[:2], site.size))
    refuse_other_sites(density, draws)
    positions = torch.cat(parts, -1)
    if not density.is_static:
        _check_round_trip(density, positions, posterior)
    return positions


def refuse_other_sites(density: Density, draws: xr.DataTree) -> None:
    """Refuse draws of a program that has sites which this one has not.

    Raises:
        ValueError: names them.
    """
    own = {site.name for site in density.sites}
    drawn = set(json.loads(draws.attrs["sites"])) if "sites" in draws.attrs else own
    if drawn - own:
        raise ValueError(
            f"draws are of another program: they have the sites {sorted(drawn - own)}, which the "
            f"model has not, it has {sorted(own)}; give the model that the draws are of"
        )


def _check_round_trip(density: Density, positions: Tensor, posterior: xr.Dataset) -> None:
    for name, found in density.constrain(positions).items():
        if name not in posterior:
            continue
        given = torch.as_tensor(posterior[name].to_numpy()).to(found)
        if not (found - given).abs().max() <= ROUND_TRIP * given.abs().max():
            raise ValueError(
                f"the model with these arguments does not give back the draws of site {name!r}: "
                "its support depends on another site, or model and arguments are not those of "
                "the run"
            )


def labels_of(draws: xr.DataTree, dims: Dimensions) -> Labels:
    """Name the axes of sites as the draws do: by plates, or as `dims=` and `coords=` said.

    Args:
        draws: of `fe.sample`.
        dims: site -> names of its axes by the program's plates.
    """
    given = json.loads(draws.attrs.get("dims", "{}"))
    coords = {
        str(dim): held.values.tolist()
        for node in draws.children.values()
        for dim, held in node.to_dataset().coords.items()
        if dim not in ("chain", "draw")
    }
    return Labels({**dims, **{name: tuple(own) for name, own in given.items()}}, coords)
