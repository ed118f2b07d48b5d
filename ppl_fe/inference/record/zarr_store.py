"""Keep a run on disk: a zarr folder that grows with the draws, and the file that resumes it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from zarr.errors import ZarrUserWarning

from ppl_fe.files import atomic_write

Arrays = dict[str, NDArray[Any]]
CHUNK_VALUES = 2**20


class Store:
    """The zarr folder of a run, made with its first draws.

    Beside it, until the run is complete, lies `path` + ".resume": the state of the chains after the
    last stored draw, as safetensors, written aside and renamed.

    Args:
        path: of the folder, which must not exist unless a run is resumed.
        resume: go on with what is there. Default False.

    Attributes:
        complete: the run to be resumed has all its draws, which `finished` reads.

    Raises:
        FileExistsError: `path` exists and is not to be resumed.
        FileNotFoundError: nothing to resume.
    """

    def __init__(self, path: str | Path, *, resume: bool = False) -> None:
        self.path = Path(path)
        self.resume_file = self.path.with_name(self.path.name + ".resume")
        self._root: zarr.Group | None = None
        self.complete = False
        if not resume and self.path.exists():
            raise FileExistsError(
                f"save_to: {self.path} already holds another run; "
                "give a new path, remove it first, or go on with it by resume=True"
            )
        if not resume:
            return
        if self.path.exists():
            # Consolidated metadata still have the lengths of the interrupted run.
            self._root = zarr.open_group(self.path, mode="r+", use_consolidated=False)
            # As long as the file lies there, a crash may have come in the middle of `finish`.
            ended = self._root.attrs.get("interrupted") == 0
            self.complete = ended and not self.resume_file.exists()
        if not self.resume_file.exists() and not self.complete:
            raise FileNotFoundError(
                f"resume=True: the run {self.path} was interrupted and lost a chain, or its file "
                f"{self.resume_file.name} is gone: it cannot be gone on with; "
                "xarray.open_datatree(path, engine='zarr') opens its draws"
                if self.path.exists()
                else f"resume=True: there is no run {self.path}, or it was stopped in its "
                "warm-up, which is not kept; leave resume out to begin it"
            )

    def append(self, groups: Mapping[str, Arrays]) -> None:
        """Append draws (C, S', ...) to every group."""
        if self._root is None:
            # Only now, so that a run that fails before its first draw leaves no folder behind.
            self._root = zarr.open_group(self.path, mode="w-")
        for group, arrays in groups.items():
            _append(self._root.require_group(group), arrays)

    def remember(self, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write tensors and facts, which `recall` reads."""
        self.resume_file.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        with atomic_write(self.resume_file, lone=True) as aside:
            save_file(tensors, aside, {"facts": json.dumps(facts)})

    def recall(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read the tensors and facts of the last `remember`.

        Raises:
            ValueError: the file is damaged.
        """
        try:
            with safe_open(self.resume_file, framework="pt") as file:
                facts = json.loads(file.metadata()["facts"])
            return load_file(self.resume_file), facts
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"resume=True: {self.resume_file} is damaged ({type(error).__name__}: {error}); "
                f"the draws in {self.path} can be read, but not gone on with: begin a new run"
            ) from error

    def finished(self, facts: Mapping[str, Any]) -> xr.DataTree:
        """Read all draws of a complete run, if this call has the facts of the one that made it.

        Raises:
            ValueError: it had other settings, which are named.
        """
        assert self._root is not None
        self.refuse_other_call(facts, dict(self._root.attrs))
        with xr.open_datatree(self.path, engine="zarr", consolidated=False) as tree:
            return tree.load()

    def refuse_other_call(self, facts: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
        """Compare the facts of this call with those of the call that began the run.

        Raises:
            ValueError: some differ, which are named.
        """
        others = {name: value for name, value in facts.items() if stored.get(name) != value}
        if others:
            was = {name: stored.get(name) for name in others}
            raise ValueError(
                f"resume=True: {self.path} was begun with {was}, not with {others}; "
                "repeat the call that began it"
            )

    def abandon(self) -> None:
        """Remove the file that resumes the run: there is nothing to go on with."""
        self.resume_file.unlink(missing_ok=True)

    def draws(self, num_draws: int) -> dict[str, Arrays]:
        """Read the first draws of every group, and cut off what came after them.

        Raises:
            ValueError: there are fewer.
        """
        groups = {} if self._root is None else dict(self._root.groups())
        growing = {
            name: {key: array for key, array in group.arrays() if _grows(array)}
            for name, group in groups.items()
        }
        held = min((a.shape[1] for arrays in growing.values() for a in arrays.values()), default=0)
        if held < num_draws:
            raise ValueError(
                f"resume=True: {self.path} holds {held} draws, but {self.resume_file.name} goes on "
                f"from draw {num_draws}, so the folder was changed since; begin a new run"
            )
        for name, group in groups.items():
            for key in list(group.array_keys()):
                if key not in growing[name]:
                    del group[key]
        found: dict[str, Arrays] = {}
        for name, arrays in growing.items():
            for key, array in arrays.items():
                array.resize((array.shape[0], num_draws, *array.shape[2:]))
                if num_draws:  # the first append may have made some of the arrays only
                    found.setdefault(name, {})[key] = np.asarray(array[...])
        return found

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


def _grows(array: zarr.Array[Any]) -> bool:
    """Return whether it has one entry a draw, and is not the draws' own coordinate."""
    return array.ndim > 1 and "draw" in (array.metadata.dimension_names or ())


def dimension_names(name: str, ndim: int) -> tuple[str, ...]:
    """Name dimensions as ArviZ does: chain, draw, and one for each dimension of the site."""
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
