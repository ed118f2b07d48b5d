"""What posteriordb gives for a posterior: its data and its reference draws.

The draws are Stan's, 10 chains of 1000 after thinning by 10, on the constrained scale
(Magnusson et al. 2025, posteriordb). They come with the shared data, not with the repository.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_fe.inference.program.density import Density

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data" / "posteriordb"

needs_posteriordb = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="needs posteriordb in ../shared/data, which a clone has not"
)


class Reference(NamedTuple):
    """One posterior of the data base.

    data: Stan's data block by name, floating point in double precision.
    draws: parameter -> (C, S, *shape), on the constrained scale.
    """

    data: dict[str, Tensor]
    draws: dict[str, NDArray[np.float64]]


def load(name: str) -> Reference:
    """Read a posterior by its folder's name, such as "sblrc-blr".

    Raises:
        FileNotFoundError: no posterior of that name.
    """
    with gzip.open(FOLDER / name / "data.json.gz", "rt", encoding="utf-8") as file:
        raw: dict[str, Any] = json.load(file)
    with np.load(FOLDER / name / "draws.npz") as stored:
        columns = dict(
            zip(stored["names"].tolist(), np.moveaxis(stored["draws"], 2, 0), strict=True)
        )
    data = {key: torch.tensor(value, dtype=torch.float64) for key, value in raw.items()}
    return Reference(data, gather(columns))


def gather(columns: dict[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    """Scalars "beta[1]", "beta[2]", "sigma", each (C, S) -> "beta" (C, S, 2), "sigma" (C, S).

    Raises:
        ValueError: the entries of a vector are not 1, 2, ... in order.
    """
    entries: dict[str, list[NDArray[np.float64]]] = {}
    for column, values in columns.items():
        name, _, index = column.partition("[")
        entries.setdefault(name, []).append(values)
        if index and index != f"{len(entries[name])}]":
            raise ValueError(f"{column} follows {len(entries[name]) - 1} entries of {name}")
    return {
        name: np.stack(values, -1) if f"{name}[1]" in columns else values[0]
        for name, values in entries.items()
    }


def unconstrained(density: Density, draws: dict[str, NDArray[np.float64]]) -> Tensor:
    """Reference draws -> positions (C, S, D) of the density's unconstrained space.

    The noncentred eight schools report theta = mu + tau theta_trans, and their site is theta_trans.
    """
    values = {name: torch.as_tensor(value) for name, value in draws.items()}
    if "theta_trans" in density.transforms:
        theta, mu, tau = values.pop("theta"), values["mu"], values["tau"]
        values["theta_trans"] = (theta - mu[..., None]) / tau[..., None]
    num_chains, num_draws = next(iter(values.values())).shape[:2]
    flat = {name: density.transforms[name](value.flatten(0, 1)) for name, value in values.items()}
    return density.join(flat).reshape(num_chains, num_draws, -1)
