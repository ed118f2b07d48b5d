"""The support of a latent site, and which sites have none that real numbers can be mapped onto."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

# Where torch has no such class, a mixture's support is that of its components as it is.
INDEPENDENT: Any = constraints.independent  # untyped
OF_MIXTURES: Any = getattr(constraints, "MixtureSameFamilyConstraint", ())


class RefusedSiteError(ValueError):
    """A site that cannot be sampled whatever the data; the message says what to write instead."""


def transform_of(name: str, fn: Any) -> Any:
    """The bijection from unconstrained values onto the support of a site's distribution.

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
            f"latent site {name!r} is discrete ({type(fn).__name__}): it has no gradient; "
            "marginalise it, as fe.models.gaussian_scale_mixture does by a factor"
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


def is_real(fn: Any) -> bool:
    """Whether unconstrained values are the site's own."""
    return _is_real(fn.support)


def likely_dtype(fn: Any, otherwise: torch.dtype) -> Tensor:
    """Some tensor that the distribution holds, or an empty one of the other dtype."""
    base = fn
    while hasattr(base, "base_dist"):
        base = base.base_dist
    for value in vars(base).values():
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    return torch.empty((), dtype=otherwise)


def _of_components(name: str, support: Any) -> Any:
    if isinstance(support, constraints.independent):
        base = _of_components(name, support.base_constraint)
        return INDEPENDENT(base, support.reinterpreted_batch_ndims)
    if not isinstance(support, OF_MIXTURES):
        return support
    base = support.base_constraint
    if _has_bounds_of_its_own(base):
        raise RefusedSiteError(
            f"latent site {name!r} is a mixture whose components have bounds of their own, "
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
