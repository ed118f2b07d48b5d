"""Which sites can be sampled: supports onto which the real line maps, and plates that fit data.

Each site is a node of Pyro's trace; a site that cannot be sampled is refused by its name, with
the statement to write in its place.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

# Where torch has no such class, a mixture's support is that of its components as it is.
INDEPENDENT: Any = constraints.independent  # untyped
OF_MIXTURES: Any = getattr(constraints, "MixtureSameFamilyConstraint", ())


# Densities on a circle whose support torch and Pyro call the real line.
ANGLES = {"VonMises", "SineBivariateVonMises", "SineSkewed"}


class RefusedSiteError(ValueError):
    """A site that cannot be sampled, whatever the data; the message has what to write instead."""


def transform_of(name: str, fn: Any) -> Any:
    """Find the bijection from unconstrained values onto the support of a site's distribution.

    A mixture of one family has its components' support, which has to be one for all of them.

    Raises:
        RefusedSiteError: a discrete site, a point mass, a support without a bijection, or a
            distribution that is not Pyro's.

    Example:
        >>> import pyro.distributions as dist
        >>> float(transform_of("scale", dist.HalfNormal(1.0))(torch.zeros(())))
        1.0
    """
    if not hasattr(fn, "has_enumerate_support") or not hasattr(fn, "shape"):
        kind = type(fn).__name__
        raise RefusedSiteError(
            f"latent site {name!r} has a distribution of {type(fn).__module__.split('.')[0]}, "
            f"{kind}; give pyro.distributions.{kind}"
        )
    if fn.has_enumerate_support or fn.support.is_discrete:
        raise RefusedSiteError(
            f"latent site {name!r} is discrete ({type(fn).__name__}) and has no list of its values "
            "that could be summed over, as Categorical, Bernoulli and Binomial have; marginalise "
            "it, as fe.models.gaussian_scale_mixture does by a factor"
        )
    inner = base_of(fn)
    inner = base_of(getattr(inner, "component_distribution", inner))  # of a mixture of one family
    if ANGLES & {kind.__name__ for kind in type(inner).__mro__}:
        raise RefusedSiteError(
            f"latent site {name!r} ({type(inner).__name__}) is an angle: its density has "
            "period 2π, and chains would wander over the periods. Sample a direction, two sites "
            "x and y of Normal(0, 1), take torch.atan2(y, x) by pyro.deterministic, and give it "
            "the density by pyro.factor"
        )
    if type(fn).__name__ == "Delta":
        raise RefusedSiteError(
            f"latent site {name!r} is a point mass (Delta), nothing to sample; write "
            f"pyro.deterministic({name!r}, value)"
        )
    support = _of_components(name, fn.support)
    try:
        return biject_to(support)
    except NotImplementedError as error:
        raise RefusedSiteError(
            f"latent site {name!r} ({type(fn).__name__}) has a support, {support!r}, that torch "
            "maps no real numbers onto one to one; build its value of sites that have such a map, "
            "by pyro.deterministic: a covariance matrix of dist.LKJCholesky and scales, a "
            "direction of a Normal vector over its length"
        ) from error


def is_enumerable(fn: Any) -> bool:
    """Return whether a latent site is discrete, of values that can be listed and summed over."""
    return bool(getattr(fn, "has_enumerate_support", False))


def is_real(fn: Any) -> bool:
    """Return whether a site's unconstrained values are its values."""
    return _is_real(fn.support)


def tensor_held(fn: Any, otherwise: torch.dtype) -> Tensor:
    """Find a tensor of floats in the distribution, or make one of the other dtype."""
    for value in vars(base_of(fn)).values():
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    return torch.empty((), dtype=otherwise)


def base_of(fn: Any) -> Any:
    """Take a distribution out of those that expand, mask or transform it."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def refuse_name(name: str) -> None:
    """Refuse the name of a site that draws cannot be kept under.

    Raises:
        ValueError: it holds a slash, which names a folder in an `xarray.DataTree` and on disk.

    Example:
        >>> refuse_name("regression.mean")
    """
    if "/" in name:
        raise RefusedSiteError(
            f"site name {name!r} holds a slash, under which no draws can be kept: "
            "pyro.contrib.autoname.scope makes such names; write the prefix into the name, "
            f"{name.replace('/', '.')!r}"
        )


def refuse_loop(name: str, site: Any) -> None:
    """Refuse an observed site in a `for` loop over a plate that subsamples.

    Index sets are drawn with replacement, so that one name would come twice.

    Raises:
        ValueError: the plate, and what to write.
    """
    for frame in site["cond_indep_stack"]:
        if not frame.vectorized and frame.size < (frame.full_size or 0):
            raise ValueError(
                f"observed site {name!r} is in a loop over the plate {frame.name!r}, which "
                f"subsamples: write `with pyro.plate({frame.name!r}, ..., subsample_size="
                f"{frame.size}) as rows:` and one site for all of its rows"
            )


def _of_components(name: str, support: Any) -> Any:
    if isinstance(support, constraints.independent):
        base = _of_components(name, support.base_constraint)
        return INDEPENDENT(base, support.reinterpreted_batch_ndims)
    if not isinstance(support, OF_MIXTURES):
        return support
    base = support.base_constraint
    if _has_bounds_of_its_own(base):
        raise RefusedSiteError(
            f"latent site {name!r} is a mixture whose components have different bounds, "
            f"{base!r}: where one ends, its density has a jump, and no gradient; give components "
            "of one support, as Normal, Gamma or Beta have"
        )
    return base


def _has_bounds_of_its_own(support: Any) -> bool:
    held = vars(support).values()
    return any(
        value.dim() > 0 if isinstance(value, Tensor) else _has_bounds_of_its_own(value)
        for value in held
        if isinstance(value, Tensor | constraints.Constraint)
    )


def _is_real(support: Any) -> bool:
    if isinstance(support, constraints.independent):
        return _is_real(support.base_constraint)
    if isinstance(support, OF_MIXTURES):
        return _is_real(support.base_constraint)
    return support in (constraints.real, constraints.real_vector)


class Rows(Tensor):
    """Row numbers that index tensors alone, as those of a traced step do.

    NumPy would take plain ones in a trial run, and fail when the step is traced.

    Example:
        >>> rows = torch.arange(2).as_subclass(Rows)
        >>> torch.arange(3)[rows]
        tensor([0, 1])
    """

    __torch_function__: Any = torch._C._disabled_torch_function_impl

    def __array__(self, *_: Any) -> Any:
        raise RuntimeError(
            "the rows that a plate chose index a NumPy array or a data frame, which no traced step "
            "can do: make it a tensor, outside of the model, by torch.as_tensor(array)"
        )


def largest_plate(site: Any) -> int:
    """Count the entries of the largest plate around an observed site, 1 if there is none.

    A plate without a size has as many as the site's log-densities along its dimension.
    """
    shape = site["log_prob"].shape
    sizes = [frame.full_size for frame in site["cond_indep_stack"] if frame.full_size]
    unsized = [frame.dim for frame in site["cond_indep_stack"] if _is_unsized(frame)]
    return int(max([1, *sizes, *(shape[dim] for dim in unsized if -dim <= len(shape))]))


def refuse_broadcast(name: str, site: Any) -> None:
    """Refuse an observed site whose log-densities have another shape than its plates.

    Observations (N, 1) against means (N,) make N² terms: a posterior far too narrow, about the
    mean of all data, that mixes well and passes every check of a sampler. A dimension that no plate
    declares is right where it makes no more terms than there are values: two coins in columns
    under a plate of tosses, dim=-2.

    Args:
        name: of the site.
        site: node of a trace with log-densities, where plates have their sizes.

    Raises:
        ValueError: the shapes, and what to do.
    """
    frames = {frame.dim: frame for frame in site["cond_indep_stack"] if frame.vectorized}
    shape = tuple(site["log_prob"].shape)
    if not frames:
        value, law = site["value"], site["fn"]
        given = tuple(value.shape[: value.dim() - law.event_dim])
        if prod(shape) > max(prod(given), prod(law.batch_shape)):
            raise ValueError(
                f"observed site {name!r} has log-densities of shape {shape}, more than its values, "
                f"{given}, and than its distribution, {tuple(law.batch_shape)}: they broadcast "
                "against each other. Give a column (N, 1) as (N,), by .squeeze(-1)"
            )
        return
    depth = max(len(shape), *(-dim for dim in frames))
    padded = (1,) * (depth - len(shape)) + shape
    wanted = tuple(
        padded[dim] if dim in frames and _is_unsized(frames[dim]) else _size(frames.get(dim))
        for dim in range(-depth, 0)
    )
    declared = tuple(padded[dim] if dim in frames else 1 for dim in range(-depth, 0))
    value = site["value"]
    in_values = prod(shape) <= prod(value.shape[: value.dim() - site["fn"].event_dim])
    if padded != wanted and not (declared == wanted and in_values):
        raise ValueError(
            f"observed site {name!r} has log-densities of shape {shape}, its plates have "
            f"{wanted}: value {tuple(value.shape)} and distribution "
            f"{tuple(site['fn'].shape())} broadcast against each other. Give a column (N, 1) as "
            "(N,), by .squeeze(-1), or declare the other dimensions by .to_event(...) or a plate"
        )


def refuse_repeated(name: str, site: Any, of_its_own: frozenset[str]) -> None:
    """Refuse observations that a plate of their own length repeats.

    With `.to_event(1)` on rows that a plate declares already, or with a second plate around them,
    the same N observations stand at each of the N places of the plate: N² terms. One value that
    stands for all, and the plate of several fits of the same data, are as they should be.

    Args:
        name: of the site.
        site: node of a trace.
        of_its_own: plates that have latent sites within them.

    Raises:
        ValueError: the plate, and what to leave out.
    """
    shape = tuple(torch.as_tensor(site["value"]).shape)
    own = shape[: len(shape) - site["fn"].event_dim]
    for frame in site["cond_indep_stack"]:
        if not frame.vectorized or frame.name in of_its_own or frame.size < 2:
            continue
        held = -frame.dim <= len(own) and own[frame.dim] > 1
        if not held and frame.size in shape:
            raise ValueError(
                f"observed site {name!r} has values of shape {shape}, no axis of which belongs to "
                f"the plate {frame.name!r} of {frame.size}: it would count all of them "
                f"{frame.size} times. A plate stands for the rows by itself: leave out "
                ".to_event(1), or any further plate, for their axis"
            )


def _size(frame: Any) -> int:
    return 1 if frame is None else int(frame.size)


def _is_unsized(frame: Any) -> bool:
    """Return whether it is of `pyro.plate(name)`, which takes any size and gives it as −1."""
    return bool(frame.vectorized and frame.size == -1)
