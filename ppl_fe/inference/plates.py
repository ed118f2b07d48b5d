"""A likelihood whose values broadcast against each other, and so count every datum many times."""

from __future__ import annotations

from typing import Any


def refuse_broadcast(name: str, site: Any) -> None:
    """Refuse an observed site in plates whose log-density has another shape than they.

    Observations (N, 1) against means (N,) make N² terms: a posterior far too narrow, about the
    mean of all data, that mixes well and passes every check of a sampler.

    Args:
        name: of the site.
        site: of a trace with log-densities, where plates have their sizes.

    Raises:
        ValueError: the shapes, and what to do.
    """
    frames = {frame.dim: frame.size for frame in site["cond_indep_stack"] if frame.vectorized}
    if not frames:
        return
    shape = tuple(site["log_prob"].shape)
    depth = max(len(shape), *(-dim for dim in frames))
    padded = (1,) * (depth - len(shape)) + shape
    wanted = tuple(frames.get(dim, 1) for dim in range(-depth, 0))
    if padded != wanted:
        raise ValueError(
            f"observed site {name!r} has log-densities of shape {shape}, its plates ask for "
            f"{wanted}: value {tuple(site['value'].shape)} and distribution "
            f"{tuple(site['fn'].shape())} broadcast against each other. Give a column (N, 1) as "
            "(N,), by .squeeze(-1), or declare the other dimensions by .to_event(...) or a plate"
        )
