"""Keep a run on disk: a zarr folder that grows with the draws, and the file that resumes it."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from torch import Tensor
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.errors import ZarrUserWarning

from ppl_fe.files.safetensors_io import read_checked, write_checked
from ppl_fe.inference.record.seal import METADATA, break_seal, seal, sealed

Arrays = dict[str, NDArray[Any]]
CHUNK_VALUES = 2**20
FORMAT = "ppl-fe resume 2"
# A chunk that was changed is an error to whoever reads it, by whatever program.
CODECS = (ZstdCodec(), Crc32cCodec())


class Stopped(NamedTuple):
    """Where a stored run stands.

    state: tensors that the run goes on with. facts: of the call that began it. num_draws: of each
    chain, up to there. sums: array -> the SHA-256 of those draws.
    """

    state: dict[str, Tensor]
    facts: dict[str, Any]
    num_draws: int
    sums: dict[str, str]


class Store:
    """The zarr folder of a run, made with its first draws.

    Beside it, until the run is complete, lies `path` + ".resume": the state of the chains after the
    last stored draw, as safetensors, written aside and renamed.

    Args:
        path: of the folder, which must not exist unless a run is resumed.
        facts: what identifies the run; none by default.
        resume: go on with what is there. Default False.

    Attributes:
        complete: the run to be resumed has all its draws, which `finished` reads.
        stored_facts: of a complete run.

    Raises:
        FileExistsError: `path` exists and is not to be resumed.
        FileNotFoundError: nothing to resume.
        ValueError: what is to be resumed is damaged.
    """

    def __init__(
        self, path: str | Path, facts: Mapping[str, Any] | None = None, *, resume: bool = False
    ) -> None:
        self.path, self.facts = Path(path), dict(facts or {})
        self.resume_file = self.path.with_name(self.path.name + ".resume")
        self._root: zarr.Group | None = None
        self._sums: dict[str, Any] = {}
        self.complete, self.stored_facts = False, dict[str, Any]()
        if not resume and self.path.exists():
            raise FileExistsError(
                f"save_to: {self.path} already holds another run; "
                "give a new path, remove it first, or go on with it by resume=True"
            )
        if not resume:
            return
        if self.path.exists():
            self._open()
        if not self.resume_file.exists() and not self.complete:
            raise FileNotFoundError(
                f"resume=True: the run {self.path} was interrupted and lost a chain, or its file "
                f"{self.resume_file.name} is gone: it cannot be gone on with; "
                "xarray.open_datatree(path, engine='zarr') opens its draws"
                if self.path.exists()
                else f"resume=True: there is no run {self.path}, or it was stopped in its "
                "warm-up, which is not kept; leave resume out to begin it"
            )

    def _open(self) -> None:
        """Open the folder of an earlier call."""
        found = sealed(self.path)
        try:
            # Consolidated metadata still have the lengths of the interrupted run.
            self._root = zarr.open_group(self.path, mode="r+", use_consolidated=False)
            ended = self._root.attrs.get("interrupted") == 0
            with _unknown_files_ignored():
                for _, group in self._root.groups():
                    list(group.arrays())  # all metadata are read
        except Exception as error:  # zarr's, JSON's, the system's: whatever lies there
            raise ValueError(
                f"resume=True: {self.path} is no folder that a run wrote, or it is damaged: "
                f"{_wrong(self.path, error)}; begin a new run"
            ) from error
        # As long as the file lies there, a crash may have come in the middle of `finish`.
        self.complete = found is not None and ended and not self.resume_file.exists()
        self.stored_facts = {} if found is None else found.facts

    def append(self, groups: Mapping[str, Arrays]) -> None:
        """Append draws (C, S', ...) to every group."""
        if self._root is None:
            # Only now, so that a run that fails before its first draw leaves no folder behind.
            self._root = zarr.open_group(self.path, mode="w-")
        for group, arrays in groups.items():
            _append(self._root.require_group(group), arrays)
        self._add(groups)

    def remember(self, state: Mapping[str, Tensor], found: Mapping[str, Any], draws: int) -> None:
        """Write what `recall` reads.

        Args:
            state: tensors that the run goes on with.
            found: more facts that a call to resume it must agree in.
            draws: of each chain, that are in the folder.
        """
        self.resume_file.parent.mkdir(parents=True, exist_ok=True)
        about = {
            "facts": {**self.facts, **found},
            "num_draws": draws,
            "sums": {name: running.hexdigest() for name, running in self._sums.items()},
        }
        write_checked(self.resume_file, state, about, FORMAT, lone=True)

    def recall(self) -> Stopped:
        """Read what the last `remember` wrote.

        Raises:
            ValueError: the file is damaged.
        """
        try:
            state, about = read_checked(self.resume_file, FORMAT, "resume", ValueError)
            return Stopped(state, **about)
        except (ValueError, OSError, TypeError) as error:
            raise ValueError(
                f"resume=True: {error}; the draws in {self.path} can be read, but not gone on "
                "with: begin a new run"
            ) from error

    def finished(self) -> xr.DataTree:
        """Read all draws of a complete run.

        Raises:
            ValueError: the folder is damaged.
        """
        return read_stored(self.path)

    def abandon(self) -> None:
        """Remove the file that resumes the run: there is nothing to go on with."""
        self.resume_file.unlink(missing_ok=True)

    def draws(self, stopped: Stopped) -> dict[str, Arrays]:
        """Read the draws of every group up to where the run goes on; change nothing.

        Raises:
            ValueError: they are not those that were written.
        """
        found: dict[str, Arrays] = {}
        if not stopped.num_draws:  # the first append may have made some of the arrays only
            return found
        for name in stopped.sums:
            group, _, key = name.partition("/")
            try:
                assert self._root is not None
                array = self._root[group][key]
                named = array.metadata.dimension_names
                held, values = array.shape[1], np.asarray(array[:, : stopped.num_draws])
            except Exception as error:  # zarr's, JSON's, the codecs'
                raise self._other_draws(f"{name} cannot be read ({error})") from error
            if held < stopped.num_draws:
                raise self._other_draws(
                    f"{name} holds {held} draws, but {self.resume_file.name} goes on from draw "
                    f"{stopped.num_draws}"
                )
            if tuple(named or ()) != dimension_names(key, values.ndim):
                raise self._other_draws(f"{name} has the dimensions {named}")
            found.setdefault(group, {})[key] = values
        self._add(found)
        for name, running in self._sums.items():
            if running.hexdigest() != stopped.sums[name]:
                raise self._other_draws(f"{name} does not hold the draws that were written")
        return found

    def cut(self, num_draws: int) -> None:
        """Leave these first draws alone, as if the run had been killed after them."""
        if self._root is None:
            return
        break_seal(self.path)
        # With these go the consolidated metadata, which would outlive the lengths they tell.
        self._root.attrs.put({})
        with _unknown_files_ignored():
            for _, group in list(self._root.groups()):
                group.attrs.put({})
                for key, array in list(group.arrays()):
                    if _grows(array):
                        array.resize((array.shape[0], num_draws, *array.shape[2:]))
                    else:
                        del group[key]

    def finish(self, tree: xr.DataTree, *, complete: bool) -> None:
        """Write what is known only at the end: coordinates, attributes, which chains are good."""
        assert self._root is not None
        self._root.attrs.update(tree.attrs)
        for name, node in tree.children.items():
            group = self._root.require_group(name)
            group.attrs.update(node.attrs)
            for variable, values in node.data_vars.items():
                if variable not in group:
                    _create(group, str(variable), values.values, values.dims)
                elif group[variable].shape != values.shape:
                    # Only what may be averaged stays in the store's arrays.
                    group[variable].resize(values.shape)
                    group[variable][...] = values.values
            for coordinate, values in node.coords.items():
                _create(group, str(coordinate), values.values, values.dims)
        with _unknown_files_ignored():
            # xarray looks for consolidated metadata first and warns where it finds none.
            zarr.consolidate_metadata(self._root.store)
        seal(self.path, self.facts, tree)
        if complete:
            self.abandon()

    def _add(self, groups: Mapping[str, Arrays]) -> None:
        """Take draws (C, S', ...) into the sums, draw after draw."""
        for group, arrays in groups.items():
            for name, values in arrays.items():
                by_draw = np.ascontiguousarray(np.moveaxis(values, 1, 0))
                kind = f"{by_draw.dtype} {by_draw.shape[1:]}".encode()
                running = self._sums.setdefault(f"{group}/{name}", hashlib.sha256(kind))
                running.update(by_draw.data)

    def _other_draws(self, wrong: str) -> ValueError:
        return ValueError(
            f"resume=True: {self.path} was changed since its run was stopped: {wrong}; "
            "begin a new run"
        )


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
    quiet = nullcontext() if found is None else _unknown_files_ignored()
    try:
        with quiet, xr.open_datatree(path, engine="zarr", consolidated=False) as opened:
            tree = opened.load()
    except Exception as error:  # xarray's, zarr's, JSON's, the codecs'
        raise ValueError(
            f"{path} is damaged, or no folder of draws: {_wrong(path, error)}; take it from a "
            "copy, or sample again"
        ) from error
    # A folder lists its files in any order.
    order = {} if found is None else found.order
    for name, node in tree.children.items():
        node.dataset = node.to_dataset()[order.get(name, sorted(map(str, node.data_vars)))]
    names = dict.fromkeys([*order, *tree.children])
    tree.children = {name: tree.children[name] for name in names}
    return tree


def _wrong(folder: Path, error: Exception) -> str:
    """Say what zarr stumbled over; its own error does not name the file."""
    for file in sorted(folder.rglob(METADATA)):
        try:
            json.loads(file.read_bytes())
        except (OSError, ValueError, RecursionError):
            return f"{file.relative_to(folder)} is no JSON"
    return f"{type(error).__name__}: {error}"


@contextmanager
def _unknown_files_ignored() -> Iterator[None]:
    """Say nothing of files that others left in the folder, nor of zarr's own beta features."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZarrUserWarning)
        yield


def _append(group: zarr.Group, arrays: Arrays) -> None:
    for name, values in arrays.items():
        if name not in group:
            chunk = max(1, min(values.shape[1], CHUNK_VALUES // max(1, values[:, :1].size)))
            group.create_array(
                name,
                shape=(values.shape[0], 0, *values.shape[2:]),
                chunks=(values.shape[0], chunk, *(max(1, n) for n in values.shape[2:])),
                dtype=values.dtype,
                dimension_names=dimension_names(name, values.ndim),
                compressors=CODECS,
                # A chunk that is missing is read as this.
                fill_value=np.nan if values.dtype.kind == "f" else 0,
            )
        group[name].append(values, axis=1)


def _grows(array: zarr.Array[Any]) -> bool:
    """Return whether it has one entry a draw, and is not the draws' own coordinate."""
    return array.ndim > 1 and "draw" in (array.metadata.dimension_names or ())


def dimension_names(name: str, ndim: int) -> tuple[str, ...]:
    """Name dimensions as ArviZ does: chain, draw, and one for each dimension of the site."""
    own = ("block",) if name == "block_temperature" else ()
    return ("chain", "draw", *(own or (f"{name}_dim_{k}" for k in range(ndim - 2))))


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
