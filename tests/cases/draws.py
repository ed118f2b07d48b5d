"""Draws made by hand, in the form in which `fe.sample` returns them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

Array = NDArray[np.float64]
LAYERS = {"first": slice(0, 4), "second": slice(4, 10)}


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def draws_of(
    loss: Array | None = None,
    r_hat: Array | None = None,
    temperatures: Array | None = None,
    **attributes: Any,
) -> xr.DataTree:
    """Loss (C, S), R-hat of ten coordinates of one site, block temperatures (C, S, 2)."""
    loss = noise(4, 100) if loss is None else loss
    chains, draws = loss.shape
    over = ("chain", "draw")
    heat = 1 + 0.1 * noise(chains, draws, 2, seed=1) if temperatures is None else temperatures
    stats = xr.Dataset(
        {
            "loss": (over, loss),
            "lp": (over, -loss),
            "step_size": (over, np.full_like(loss, 0.01)),
            "configurational_temperature": (over, heat.mean(-1)),
            "stiff_temperature": (over, 1 + 0.1 * noise(chains, draws, seed=2)),
            "block_temperature": ((*over, "block"), heat),
        },
        coords={"chain": range(chains), "draw": range(draws), "block": list(LAYERS)},
    )
    site = noise(chains, draws, 10, seed=3)
    posterior = xr.Dataset(
        {"w": ((*over, "w_dim_0"), site)}, coords={"chain": range(chains), "draw": range(draws)}
    )
    table = np.ones((4, 10))
    table[2] = 1.001 if r_hat is None else r_hat
    moments = xr.Dataset(
        {"w": (("moment", "w_dim_0"), table)}, coords={"moment": ["mean", "sd", "r_hat", "ess"]}
    )
    tree = xr.DataTree.from_dict(
        {"posterior": posterior, "sample_stats": stats, "moments": moments}
    )
    tree.attrs = {
        "temperature": 1.0,
        "tolerance": 0.05,
        "thinning": 1,
        "num_chains": chains,
        "warmup_steps": 100,
        "blocks": json.dumps({name: [own.start, own.stop] for name, own in LAYERS.items()}),
        **attributes,
    }
    return tree
