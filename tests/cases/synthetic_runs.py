"""Draws of exactly known law, without a sampler: stationary AR(1) in every coordinate."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from scipy.signal import lfilter

Array = np.ndarray[Any, np.dtype[np.float64]]


def autoregressive(
    generator: np.random.Generator, correlation: float, shape: tuple[int, ...]
) -> Array:
    """Unit normals (..., S) of this correlation from one to the next."""
    shocks = generator.standard_normal(shape)
    shocks[..., 1:] *= np.sqrt(1 - correlation**2)
    return np.asarray(lfilter([1.0], [1.0, -correlation], shocks, axis=-1))


def synthetic(
    generator: np.random.Generator,
    *,
    num_chains: int = 4,
    num_draws: int = 1000,
    size: int = 5,
    correlation: float = 0.0,
    noise: float = 0.3,
) -> xr.DataTree:
    """What `fe.sample` returns of `size` unit normals; minibatch noise in loss and virials."""
    w = autoregressive(generator, correlation, (size, num_chains, num_draws))
    squares = np.square(w)
    jitter = generator.standard_normal((num_chains, num_draws))
    loss = squares.sum(0) / 2 + noise * np.sqrt(size / 2) * jitter
    virials = np.moveaxis(squares + noise * w * generator.standard_normal(w.shape), 0, -1)
    per_draw = ("chain", "draw")
    stats = {
        "lp": (per_draw, -loss),
        "loss": (per_draw, loss),
        "configurational_temperature": (per_draw, virials.mean(-1)),
        "stiff_temperature": (per_draw, virials[..., 0]),
        "block_temperature": ((*per_draw, "block"), virials),
        "gradient_norm": (per_draw, np.sqrt(squares.sum(0))),
        "step_size": (per_draw, np.full_like(loss, 1e-3)),
    }
    places = {"chain": np.arange(num_chains), "draw": np.arange(num_draws)}
    names = [f"layer {place}" for place in range(size)]
    tree = xr.DataTree.from_dict(
        {
            "posterior": xr.Dataset(
                {"w": ((*per_draw, "w_dim_0"), np.moveaxis(w, 0, -1))}, coords=places
            ),
            "sample_stats": xr.Dataset(stats, coords={**places, "block": names}),
        }
    )
    tree.attrs.update(
        temperature=1.0,
        tolerance=0.05,
        thinning=1,
        warmup_steps=10_000,
        num_samples=num_draws,
        num_chains=num_chains,
        num_data=100,
    )
    return tree
