"""What a diagnosis reads of a run: the arrays and settings that its draws carry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ppl_fe.diagnostics.settings import missing, settings
from ppl_fe.inference.record.zarr_folder import read_stored

Array = NDArray[np.float64]

# A site of more values than this is judged by its running moments; of its draws a hundred
# coordinates are looked at. ArviZ takes about 1.5 ms for R-hat and both ESS of one scalar.
MOST_NAMED, MOST_OF_A_SITE = 500, 100
LEAST_DRAWS = 12  # a chain: thirds of four, ArviZ's least


@dataclass(frozen=True)
class Run:
    """Draws of one target, (C, S) a scalar, in float64.

    Attributes:
        stats: of `sample_stats`, (C, S) or (C, S, L).
        blocks: names of the L blocks.
        named: label -> (C, S), the level and every value of the small sites.
        sampled: label -> (C, S), at most a hundred values of every site.
        r_hat: (D,), split R-hat of all coordinates.
        layers: name -> its run of coordinates.
        attrs: the settings, and what warm-up found.
        chains: the numbers of the chains there are.
    """

    stats: Mapping[str, Array]
    blocks: tuple[str, ...]
    named: Mapping[str, Array]
    sampled: Mapping[str, Array]
    r_hat: Array
    layers: Mapping[str, slice]
    attrs: Mapping[str, Any]
    chains: tuple[int, ...]

    @property
    def loss(self) -> Array:
        """Give the mean negative log-likelihood of a datum, (C, S), nats."""
        return self.stats["loss"]

    @property
    def level(self) -> Array:
        """Give what levels off in a plateau, (C, S): the loss, or −log p without data."""
        return self.loss if np.ptp(self.loss) != 0 else -self.stats["lp"]

    @property
    def temperature(self) -> float:
        """Give T of the target p^{1/T}."""
        return float(self.attrs["temperature"])

    @property
    def is_estimate(self) -> bool:
        """Say whether the draws are those of an estimate about a w*, whose loss was recorded."""
        return "anchor_loss" in self.attrs

    @property
    def wanted(self) -> Mapping[str, Array]:
        """Give what the run is for and so has to mix, label -> (C, S).

        Of an estimate that is the loss, from which WBIC and λ̂ = nβ(E[L] − L(w*)) are made, and
        not a weight; of any other run all of `named`.
        """
        return {"loss": self.level} if self.is_estimate else self.named

    @property
    def all_wanted(self) -> bool:
        """Say whether every coordinate is among `wanted`."""
        return len(self.r_hat) < len(self.wanted)

    @property
    def num_draws(self) -> int:
        """Count the draws of each chain, S."""
        return int(self.loss.shape[1])

    def tuned(self, name: str) -> Array | None:
        """Give the attribute `tuned_{name}`, (C,); None where the step was set by hand."""
        values = self.attrs.get(f"tuned_{name}")
        return None if values is None else np.asarray(values, dtype=np.float64)[[*self.chains]]


def open_draws(draws: Any) -> xr.DataTree:
    """Open draws: a DataTree, a zarr folder, a netCDF file, or what has a DataTree as `.draws`.

    Raises:
        TypeError: anything else.
        FileNotFoundError: no such folder.
        ValueError: neither zarr nor netCDF, or a tree that `fe.sample` did not make.
    """
    if isinstance(draws, str | Path):
        draws = _from_disk(Path(draws))
    elif not isinstance(draws, xr.DataTree):
        draws = getattr(draws, "draws", draws)
    if not isinstance(draws, xr.DataTree):
        raise TypeError(
            "draws must be what fe.sample returned, a path it was saved to, or an estimate, "
            f"got {type(draws).__name__}"
        )
    missing = [group for group in ("posterior", "sample_stats") if group not in draws.children]
    if missing:
        raise ValueError(f"draws has no group {' and no '.join(missing)}; give fe.sample's draws")
    return draws.compute()  # of draws that are read as they are needed; others are not copied


def _from_disk(path: Path) -> xr.DataTree:
    if not path.exists():
        raise FileNotFoundError(f"draws: there is nothing at {path}")
    if path.is_file():
        try:
            with xr.open_datatree(path) as tree:
                return tree.load()
        except Exception as error:  # xarray's, and the HDF5 library's of many kinds
            raise ValueError(
                f"draws: {path} is no netCDF file that xarray can read here ({error}); give one "
                "that to_netcdf wrote, or the path of fe.sample's save_to"
            ) from error
    if not (path / "zarr.json").exists():
        raise ValueError(f"draws: {path} is no zarr folder; give the path of fe.sample's save_to")
    return read_stored(path)


def read_run(draws: xr.DataTree, group: int | None = None) -> Run:
    """Read the arrays of one target's chains; of several targets in one run, those of `group`.

    Raises:
        ValueError: statistics or settings are missing, too few draws, temperature 0, or a run of
            several targets without a group.
    """
    stats, attrs = draws["sample_stats"].to_dataset(), settings(draws.attrs)
    for name in ("loss", "lp", *(["block"] if "block_temperature" in stats else ())):
        if name not in stats:
            raise missing(name)
    if float(attrs["temperature"]) == 0:
        raise ValueError("temperature=0 descends the gradient: there is no law to be checked")
    posterior = draws["posterior"].to_dataset()
    moments = draws["moments"].to_dataset() if "moments" in draws.children else xr.Dataset()
    if moments and "moment" not in moments:
        raise missing("moment")
    groups = int(attrs.get("num_groups", 1))
    if groups > 1:
        own = _chains_of(group, groups, int(attrs["num_chains"]), stats)
        stats, posterior = stats.sel(chain=own), posterior.sel(chain=own)
        moments = moments.isel(group=group)
        attrs |= _settings_of(own[0] * groups // int(attrs["num_chains"]), groups, own[0], attrs)
    elif group not in (None, 0):
        raise ValueError(f"group={group}: these draws have one target; leave group out")
    if stats.sizes["draw"] < LEAST_DRAWS:
        raise ValueError(
            f"draws holds {stats.sizes['draw']} draws a chain, and {LEAST_DRAWS} are the least "
            "that can be diagnosed; raise num_samples"
        )
    arrays = {str(name): _array(values) for name, values in stats.data_vars.items()}
    level = "lp" if np.ptp(arrays["loss"]) == 0 else "loss"
    named, sampled = _scalars(posterior)
    if np.ptp(arrays[level]) != 0:
        named = {level: arrays[level], **named}
    tables = {
        str(name): _array(values.sel(moment="r_hat")).ravel()
        for name, values in moments.data_vars.items()
        if values.size
    }
    return Run(
        stats=arrays,
        blocks=tuple(str(name) for name in stats["block"].values) if "block" in stats else (),
        named=named,
        sampled=sampled,
        r_hat=np.concatenate([*tables.values()]) if tables else np.empty(0),
        layers=_layers(tables, attrs),
        attrs=attrs,
        chains=tuple(int(chain) for chain in stats["chain"].values),
    )


def _chains_of(group: int | None, groups: int, num_chains: int, stats: xr.Dataset) -> list[int]:
    if group is None or not 0 <= group < groups:
        raise ValueError(
            f"these draws hold {groups} targets side by side, whose chains must not be compared; "
            f"give group=0 to {groups - 1}, got {group}"
        )
    each = num_chains // groups
    own = [int(chain) for chain in stats["chain"].values if int(chain) // each == group]
    if not own:
        raise ValueError(f"group={group}: none of its {each} chains stayed finite")
    return own


def _settings_of(group: int, groups: int, chain: int, attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Find L_n(w*), one an anchor, and β, one or one a chain, of the target of a chain."""
    found: dict[str, Any] = {}
    if "anchor_loss" in attrs:
        losses = np.atleast_1d(attrs["anchor_loss"])
        found["anchor_loss"] = float(losses[group * len(losses) // groups])
    if np.ndim(attrs.get("inverse_temperature", 0.0)):
        found["inverse_temperature"] = float(attrs["inverse_temperature"][chain])
    return found


def _scalars(posterior: xr.Dataset) -> tuple[dict[str, Array], dict[str, Array]]:
    """Collect `Run.named`, without what is the same in all draws, and `Run.sampled`."""
    named: dict[str, Array] = {}
    sampled: dict[str, Array] = {}
    for key, variable in posterior.data_vars.items():
        if not variable.size:
            continue
        values = variable.values.reshape(*variable.shape[:2], -1)
        count = values.shape[-1]
        picked = np.unique(np.linspace(0, count - 1, min(count, MOST_OF_A_SITE)).astype(int))
        for place in picked:
            where = np.unravel_index(place, variable.shape[2:])
            label = f"{key}[{', '.join(str(k) for k in where)}]" if count > 1 else str(key)
            sampled[label] = values[..., place].astype(np.float64)
        if count <= MOST_OF_A_SITE and len(named) + count <= MOST_NAMED:
            named |= {label: sampled[label] for label in [*sampled][-count:]}
    # For example the zeros of a triangular matrix; beside a chain that is stuck, others move.
    named = {label: trace for label, trace in named.items() if np.ptp(trace) != 0}
    return named, sampled


def _layers(tables: Mapping[str, Array], attrs: Mapping[str, Any]) -> dict[str, slice]:
    """Find the network's layers, where the one site is its weights; otherwise the sites."""
    if len(tables) == 1 and "blocks" in attrs:
        return {name: slice(*ends) for name, ends in json.loads(attrs["blocks"]).items()}
    ends = np.cumsum([0, *(len(values) for values in tables.values())]).tolist()
    return {name: slice(*pair) for name, *pair in zip(tables, ends[:-1], ends[1:], strict=True)}


def _array(values: xr.DataArray) -> Array:
    return np.asarray(values.values, dtype=np.float64)
