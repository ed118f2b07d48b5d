"""Draws as they come: from chains to an `xarray.DataTree` in ArviZ's schema, and to disk."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
import zarr
from numpy.typing import NDArray
from torch import Tensor
from zarr.errors import ZarrUserWarning

from ppl_fe.inference.chains import Statistics
from ppl_fe.inference.density import Density

# Above this many values a site's draws are kept for a fixed random subset of its coordinates
# and a few random projections only.
LARGEST_KEPT = 10**7
NUM_SUBSET, NUM_PROJECTIONS = 100, 16
BLOCK_VALUES = 2**20
FLUSH_SECONDS = 10.0  # the most of a run on its way to disk that a crash can cost
STATISTICS = ("lp", "loss", "gradient_norm", "step_size")

Arrays = dict[str, NDArray[Any]]


class Recorder:
    """Collects kept draws in blocks; a block goes to memory and, with `save_to`, to disk.

    Args:
        density: gives the sites and their transforms.
        num_chains, num_samples: C and S.
        save_to: a zarr folder that must not exist yet. It can be opened while the run goes on, by
            `xarray.open_datatree(path, engine="zarr", consolidated=False)`, and afterwards.

    Raises:
        FileExistsError: `save_to` exists.
    """

    def __init__(
        self, density: Density, num_chains: int, num_samples: int, save_to: str | Path | None
    ) -> None:
        self.density = density
        self.num_draws = 0
        size = density.num_parameters
        self._block = max(1, min(256, num_samples, BLOCK_VALUES // (num_chains * size)))
        self._positions = torch.empty(
            (num_chains, self._block, size), dtype=density.dtype, device=density.device
        )
        self._subsets = {
            site.name: _Subset(site.size, density)
            for site in density.sites
            if density.is_static and num_chains * num_samples * site.size > LARGEST_KEPT
        }
        self._statistics = torch.empty(
            (self._block, len(STATISTICS), num_chains), dtype=density.dtype, device=density.device
        )
        self._filled = 0
        self._kept: dict[str, list[Arrays]] = {"posterior": [], "sample_stats": []}
        self._store: zarr.Group | None = None
        self.save_to = None if save_to is None else Path(save_to)
        if self.save_to is not None and self.save_to.exists():
            raise FileExistsError(
                f"save_to: {self.save_to} already holds another run; "
                "give a new path or remove it first"
            )
        self._last_flush = time.monotonic()

    def add(
        self, position: Tensor, statistics: Statistics, loss: Tensor, step_size: Tensor
    ) -> None:
        """Keep one draw of every chain: position (C, D), statistics and step size (C,)."""
        at = self._filled
        self._positions[:, at] = position
        row = (statistics.log_density, loss, statistics.gradient_norm, step_size)  # STATISTICS
        torch.stack(row, out=self._statistics[at])
        self._filled += 1
        self.num_draws += 1
        late = self.save_to is not None and time.monotonic() - self._last_flush > FLUSH_SECONDS
        if self._filled == self._block or late:
            self.flush()

    def flush(self) -> None:
        """Move the block of draws out of the buffer."""
        if not self._filled:
            return
        self._last_flush = time.monotonic()
        if self.save_to is not None and self._store is None:
            # Only now, so that a run that fails before its first draw leaves no folder behind.
            self._store = zarr.open_group(self.save_to, mode="w-")
        values = self.density.constrain(self._positions[:, : self._filled])
        posterior: Arrays = {}
        for name, value in values.items():
            if name in self._subsets:
                posterior |= self._subsets[name].reduce(name, value)
            else:
                posterior[name] = np.array(_numpy(value))  # a copy: the buffer is used again
        stats = {
            name: np.array(_numpy(self._statistics[: self._filled, row].T))
            for row, name in enumerate(STATISTICS)
        }
        for group, arrays in (("posterior", posterior), ("sample_stats", stats)):
            self._kept[group].append(arrays)
            if self._store is not None:
                _append(self._store.require_group(group), arrays)
        self._filled = 0

    def losses(self) -> NDArray[Any]:
        """(C, S) mean minibatch losses of the draws kept so far."""
        blocks = [block["loss"] for block in self._kept["sample_stats"]]
        recent = _numpy(self._statistics[: self._filled, STATISTICS.index("loss")].T)
        return np.concatenate([*blocks, recent], axis=1)

    def finish(self, failed: Mapping[int, str], attributes: Mapping[str, Any]) -> xr.DataTree:
        """All draws as a DataTree, without the chains that failed; closes the store."""
        self.flush()
        num_chains = len(self._positions)
        good = [chain for chain in range(num_chains) if chain not in failed]
        attrs = {name: _plain(value) for name, value in attributes.items()}
        groups = {}
        for group, blocks in self._kept.items():
            arrays = {
                name: np.concatenate([block[name] for block in blocks], axis=1)[good]
                for name in blocks[0]
            }
            groups[group] = self._dataset(arrays, good, attrs)
        tree = xr.DataTree.from_dict(groups)
        tree.attrs.update(attrs)
        if self._store is not None:
            self._store.attrs.update(attrs)
            for group in self._kept:
                self._store[group].attrs.update(attrs)
            if failed:
                # Only what may be averaged stays in the store's arrays.
                for group in groups:
                    for name, values in groups[group].data_vars.items():
                        target = self._store[group][name]
                        target.resize(values.shape)
                        target[...] = values.values
            _write_coordinates(self._store, groups)
            with warnings.catch_warnings():
                # xarray looks for consolidated metadata first and warns where it finds none.
                warnings.simplefilter("ignore", ZarrUserWarning)
                zarr.consolidate_metadata(self._store.store)
        return tree

    def _dataset(self, arrays: Arrays, chains: list[int], attrs: dict[str, Any]) -> xr.Dataset:
        data = {name: (_dimensions(name, values.ndim), values) for name, values in arrays.items()}
        draws = np.arange(next(iter(arrays.values())).shape[1])
        coords: dict[str, Any] = {"chain": chains, "draw": draws}
        for name, subset in self._subsets.items():
            if name in arrays:
                coords[f"{name}_dim_0"] = _numpy(subset.places)
        return xr.Dataset(data, coords=coords, attrs=attrs)


class _Subset:
    """A fixed random subset of coordinates and fixed random projections of a large site."""

    def __init__(self, size: int, density: Density) -> None:
        generator = torch.Generator().manual_seed(size)
        self.places = torch.randperm(size, generator=generator)[:NUM_SUBSET].sort().values
        signs = torch.randint(0, 2, (size, NUM_PROJECTIONS), generator=generator) * 2 - 1
        self.projection = (signs / size**0.5).to(density.device, density.dtype)

    def reduce(self, name: str, value: Tensor) -> Arrays:
        flat = value.flatten(2)
        return {
            name: _numpy(flat[..., self.places]),
            f"{name}_projection": _numpy(flat @ self.projection),
        }


def _dimensions(name: str, ndim: int) -> tuple[str, ...]:
    return ("chain", "draw", *(f"{name}_dim_{k}" for k in range(ndim - 2)))


def _append(group: zarr.Group, arrays: Arrays) -> None:
    for name, values in arrays.items():
        if name not in group:
            chunk = max(1, min(values.shape[1], BLOCK_VALUES // max(1, values[:, :1].size)))
            group.create_array(
                name,
                shape=(values.shape[0], 0, *values.shape[2:]),
                chunks=(values.shape[0], chunk, *(max(1, n) for n in values.shape[2:])),
                dtype=values.dtype,
                dimension_names=_dimensions(name, values.ndim),
            )
        group[name].append(values, axis=1)


def _write_coordinates(store: zarr.Group, groups: Mapping[str, xr.Dataset]) -> None:
    for group, dataset in groups.items():
        for name, coordinate in dataset.coords.items():
            store[group].create_array(
                str(name), data=np.asarray(coordinate.values), dimension_names=(str(name),)
            )


def _numpy(tensor: Tensor) -> NDArray[Any]:
    return np.asarray(tensor.detach().cpu().numpy())


def _plain(value: Any) -> Any:
    """A value that JSON, zarr and netCDF attributes can hold."""
    if isinstance(value, Tensor | np.ndarray):
        return np.asarray(value).tolist()
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, Mapping):
        return json.dumps(value)
    return value
