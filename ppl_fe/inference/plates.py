"""Plates: the rows they choose, the data they hold, and values that broadcast within them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Rows(Tensor):
    """Row numbers that index tensors alone, as those of a traced step do.

    NumPy would take them in a trial run, and fail with torch's own words when the step is traced.

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


def data_size(site: Any) -> int:
    """The entries of the largest plate around an observed site, 1 if there is none.

    A plate without a size has as many as the site's log-densities along its dimension.
    """
    shape = site["log_prob"].shape
    sizes = [frame.full_size for frame in site["cond_indep_stack"] if frame.full_size]
    unsized = [frame.dim for frame in site["cond_indep_stack"] if _is_unsized(frame)]
    return int(max([1, *sizes, *(shape[dim] for dim in unsized if -dim <= len(shape))]))


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
    frames = {frame.dim: frame for frame in site["cond_indep_stack"] if frame.vectorized}
    if not frames:
        return
    shape = tuple(site["log_prob"].shape)
    depth = max(len(shape), *(-dim for dim in frames))
    padded = (1,) * (depth - len(shape)) + shape
    wanted = tuple(
        padded[dim] if dim in frames and _is_unsized(frames[dim]) else _size(frames.get(dim))
        for dim in range(-depth, 0)
    )
    if padded != wanted:
        raise ValueError(
            f"observed site {name!r} has log-densities of shape {shape}, its plates ask for "
            f"{wanted}: value {tuple(site['value'].shape)} and distribution "
            f"{tuple(site['fn'].shape())} broadcast against each other. Give a column (N, 1) as "
            "(N,), by .squeeze(-1), or declare the other dimensions by .to_event(...) or a plate"
        )


def _size(frame: Any) -> int:
    return 1 if frame is None else int(frame.size)


def _is_unsized(frame: Any) -> bool:
    """Whether it is of `pyro.plate(name)`, which takes any size and gives it as −1."""
    return bool(frame.vectorized and frame.size == -1)
