"""A run on disk: a zarr folder that grows with the draws, and the file that resumes it."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from zarr.errors import ZarrUserWarning

Arrays = dict[str, NDArray[Any]]
CHUNK_VALUES = 2**20


class Store:
    """The zarr folder `path`, made with its first draws.

    Beside it, until the run is complete, lies `path` + ".resume": the state of the chains after the
    last stored draw, as safetensors, written aside and renamed.

    Args:
        path: must not exist, unless a run is resumed.
        resume: go on with what is there.

    Raises:
        FileExistsError: `path` exists and is not to be resumed.
        FileNotFoundError: nothing to resume; or the run is complete.
    """

    def __init__(self, path: str | Path, *, resume: bool = False) -> None:
        self.path = Path(path)
        self.resume_file = self.path.with_name(self.path.name + ".resume")
        self._root: zarr.Group | None = None
        if not resume and self.path.exists():
            raise FileExistsError(
                f"save_to: {self.path} already holds another run; "
                "give a new path, remove it first, or go on with it by resume=True"
            )
        if resume:
            if not self.resume_file.exists():
                why = "is complete" if self.path.exists() else "does not exist"
                raise FileNotFoundError(
                    f"resume=True: the run {self.path} {why}, so there is nothing to go on with"
                )
            if self.path.exists():
                # Consolidated metadata would go on telling the lengths of the interrupted run.
                self._root = zarr.open_group(self.path, mode="r+", use_consolidated=False)

    def append(self, groups: Mapping[str, Arrays]) -> None:
        """More draws (C, S', ...) for every group."""
        if self._root is None:
            # Only now, so that a run that fails before its first draw leaves no folder behind.
            self._root = zarr.open_group(self.path, mode="w-")
        for group, arrays in groups.items():
            _append(self._root.require_group(group), arrays)

    def remember(self, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write what `recall` gives back."""
        aside = self.resume_file.with_name(self.resume_file.name + ".partial")
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        save_file(tensors, aside, {"facts": json.dumps(facts)})
        os.replace(aside, self.resume_file)

    def recall(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and facts of the last `remember`."""
        with safe_open(self.resume_file, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
        return load_file(self.resume_file), facts

    def abandon(self) -> None:
        """There is nothing to go on with."""
        self.resume_file.unlink(missing_ok=True)

    def draws(self, num_draws: int) -> dict[str, Arrays]:
        """The first draws of every group; what came after them is forgotten."""
        found: dict[str, Arrays] = {}
        if self._root is None:
            return found
        for group_name, group in self._root.groups():
            found[group_name] = {}
            for name, array in list(group.arrays()):
                if "draw" not in (array.metadata.dimension_names or ()) or array.ndim == 1:
                    del group[name]
                else:
                    array.resize((array.shape[0], num_draws, *array.shape[2:]))
                    found[group_name][name] = np.asarray(array[...])
        return {name: arrays for name, arrays in found.items() if arrays}

    def finish(self, tree: xr.DataTree, *, complete: bool) -> None:
        """Write what is known only at the end: coordinates, attributes, which chains are good."""
        assert self._root is not None
        self._root.attrs.update(tree.attrs)
        for name, node in tree.children.items():
            group = self._root.require_group(name)
            group.attrs.update(node.attrs)
            for variable, values in node.data_vars.items():
                if variable not in group:
                    _append(group, {str(variable): values.values}, values.dims)
                elif group[variable].shape != values.shape:
                    # Only what may be averaged stays in the store's arrays.
                    group[variable].resize(values.shape)
                    group[variable][...] = values.values
            for coordinate, values in node.coords.items():
                _write_coordinate(group, str(coordinate), values.values)
        if complete:
            self.abandon()
        with warnings.catch_warnings():
            # xarray looks for consolidated metadata first and warns where it finds none.
            warnings.simplefilter("ignore", ZarrUserWarning)
            zarr.consolidate_metadata(self._root.store)


def _append(group: zarr.Group, arrays: Arrays, dimensions: Any = None) -> None:
    for name, values in arrays.items():
        if dimensions is not None:
            group.create_array(name, data=values, dimension_names=dimensions)
            continue
        if name not in group:
            chunk = max(1, min(values.shape[1], CHUNK_VALUES // max(1, values[:, :1].size)))
            group.create_array(
                name,
                shape=(values.shape[0], 0, *values.shape[2:]),
                chunks=(values.shape[0], chunk, *(max(1, n) for n in values.shape[2:])),
                dtype=values.dtype,
                dimension_names=dimension_names(name, values.ndim),
            )
        group[name].append(values, axis=1)


def dimension_names(name: str, ndim: int) -> tuple[str, ...]:
    """ArviZ's names: chain, draw, and one for each dimension of the site."""
    own = ("block",) if name == "block_temperature" else ()
    return ("chain", "draw", *(own or (f"{name}_dim_{k}" for k in range(ndim - 2))))


def _write_coordinate(group: zarr.Group, name: str, values: NDArray[Any]) -> None:
    is_text = values.dtype.kind in "UO"
    array = group.create_array(
        name,
        shape=values.shape,
        dtype="string" if is_text else values.dtype,
        dimension_names=(name,),
    )
    array[...] = values.astype(object) if is_text else values
