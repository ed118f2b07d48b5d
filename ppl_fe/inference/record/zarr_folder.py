"""A zarr folder that grows with the draws of a run: its arrays, and which of its files are new."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.errors import ZarrUserWarning
from zarr.storage import LocalStore

from ppl_fe.files.no_room import named
from ppl_fe.inference.program.dimensions import Labels
from ppl_fe.inference.record.seal import METADATA, sealed

Arrays = dict[str, NDArray[Any]]
CHUNK_VALUES = 2**20
# A chunk that was changed is an error to whoever reads it, by whatever program.
CODECS = (ZstdCodec(), Crc32cCodec())


class Noting(LocalStore):
    """A folder of zarr that notes which of its files were written.

    Attributes:
        noted: their keys, since whoever syncs them took them out.
    """

    def __init__(self, root: Path | str, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self.noted: set[str] = set()

    async def set(self, key: str, value: Any) -> None:
        """Write a file, and note it."""
        self.noted.add(key)
        with named(self.root / key):
            await super().set(key, value)

    def set_sync(self, key: str, value: Any) -> None:
        """Write a file, and note it."""
        self.noted.add(key)
        with named(self.root / key):
            super().set_sync(key, value)

    def take_new_files(self) -> list[Path]:
        """Give the files written since the last call, and all folders that have to name them."""
        files = {self.root / key for key in self.noted}
        self.noted.clear()
        folders = {folder for file in files for folder in file.parents}
        return [*files, *(one for one in folders if one.is_relative_to(self.root.parent))]


def append_draws(group: zarr.Group, arrays: Mapping[str, NDArray[Any]], labels: Labels) -> None:
    """Append draws (C, S', ...) to the arrays of a group, which are made with the first ones."""
    for name, values in arrays.items():
        if name not in group:
            chunk = max(1, min(values.shape[1], CHUNK_VALUES // max(1, values[:, :1].size)))
            group.create_array(
                name,
                shape=(values.shape[0], 0, *values.shape[2:]),
                chunks=(values.shape[0], chunk, *(max(1, n) for n in values.shape[2:])),
                dtype=values.dtype,
                dimension_names=dimension_names(name, values.ndim, labels),
                compressors=CODECS,
                # A chunk that is missing is read as this.
                fill_value=np.nan if values.dtype.kind == "f" else 0,
            )
        group[name].append(values, axis=1)


def cut_draws(root: zarr.Group, num_draws: int) -> None:
    """Leave the first draws of every array alone, and nothing that came at the end of a run."""
    # With these go the consolidated metadata, which would outlive the lengths they tell.
    root.attrs.put({})
    with unknown_files_ignored():
        for _, group in list(root.groups()):
            group.attrs.put({})
            for key, array in list(group.arrays()):
                if _grows(array):
                    array.resize((array.shape[0], num_draws, *array.shape[2:]))
                else:
                    del group[key]


def holds(root: zarr.Group, tree: xr.DataTree) -> bool:
    """Whether the draws' arrays are those of a tree, and so nothing but its end is missing."""
    return all(
        root[name][variable].shape == values.shape
        for name, node in tree.children.items()
        if name in root
        for variable, values in node.data_vars.items()
        if variable in root[name]
    )


def write_end(root: zarr.Group, tree: xr.DataTree) -> None:
    """Write what is known at the end of a run: coordinates, attributes, arrays not there yet."""
    root.attrs.update(tree.attrs)
    for name, node in tree.children.items():
        group = root.require_group(name)
        group.attrs.update(node.attrs)
        for variable, values in node.data_vars.items():
            if variable not in group:
                _create(group, str(variable), values.values, values.dims)
        for coordinate, values in node.coords.items():
            _create(group, str(coordinate), values.values, values.dims)
    with unknown_files_ignored():
        # xarray looks for consolidated metadata first and warns where it finds none.
        zarr.consolidate_metadata(root.store)


def read_stored(path: Path) -> xr.DataTree:
    """Read all draws of a folder, its sites in their order.

    A folder without a seal is read as it is: of a killed run, or written by others.

    Args:
        path: of the folder.

    Raises:
        ValueError: it is damaged, or no zarr folder of draws.
    """
    found = sealed(path)
    # Of files that others left beside what is sealed nothing need be said.
    quiet = nullcontext() if found is None else unknown_files_ignored()
    try:
        with quiet, xr.open_datatree(path, engine="zarr", consolidated=False) as opened:
            tree = opened.load()
    except Exception as error:  # xarray's, zarr's, JSON's, the codecs'
        raise ValueError(
            f"{path} is damaged, or no folder of draws: {wrong_file(path, error)}; take it from a "
            "copy, or sample again"
        ) from error
    # A folder lists its files in any order.
    order = {} if found is None else found.order
    for name, node in tree.children.items():
        node.dataset = node.to_dataset()[order.get(name, sorted(map(str, node.data_vars)))]
    names = dict.fromkeys([*order, *tree.children])
    tree.children = {name: tree.children[name] for name in names}
    return tree


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process was just writing: zarr writes each file beside its place."""
    for file in folder.rglob("*.partial"):
        file.unlink(missing_ok=True)


def wrong_file(folder: Path, error: Exception) -> str:
    """Say what zarr stumbled over; its own error does not name the file."""
    for file in sorted(folder.rglob(METADATA)):
        try:
            json.loads(file.read_bytes())
        except (OSError, ValueError, RecursionError):
            return f"{file.relative_to(folder)} is no JSON"
    return f"{type(error).__name__}: {error}"


@contextmanager
def unknown_files_ignored() -> Iterator[None]:
    """Say nothing of files that others left in the folder, nor of zarr's own beta features."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZarrUserWarning)
        yield


def dimension_names(name: str, ndim: int, labels: Labels) -> tuple[str, ...]:
    """Name dimensions: chain, draw, and one for each dimension of the site."""
    own = ("block",) if name == "block_temperature" else labels.of(name, ndim - 2)
    return ("chain", "draw", *own)


def _grows(array: zarr.Array[Any]) -> bool:
    """Return whether it has one entry a draw, and is not the draws' own coordinate."""
    return array.ndim > 1 and "draw" in (array.metadata.dimension_names or ())


def _create(group: zarr.Group, name: str, values: NDArray[Any], dimensions: Any) -> None:
    """Write what comes at the end, in one array."""
    is_text = values.dtype.kind in "UO"
    array = group.create_array(
        name,
        shape=values.shape,
        dtype="string" if is_text else values.dtype,
        dimension_names=dimensions,
        compressors=CODECS,
    )
    array[...] = values.astype(object) if is_text else values
