"""Keep a run on disk: a zarr folder that grows with the draws, and the file that resumes it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
import zarr
from torch import Tensor

from ppl_fe.files.lock import Lock, remove_left_over
from ppl_fe.files.no_room import told_if_full
from ppl_fe.files.state_file import StateFile
from ppl_fe.files.syncing import sync
from ppl_fe.inference.program.dimensions import Labels
from ppl_fe.inference.record.seal import METADATA, break_seal, is_sealed, seal, sealed
from ppl_fe.inference.record.zarr_folder import (
    Arrays,
    Noting,
    append_draws,
    cut_draws,
    dimension_names,
    holds,
    read_stored,
    remove_unfinished,
    unknown_files_ignored,
    write_end,
    wrong_file,
)

FORMAT = "ppl-fe resume 3"
DRAWS = {"chain", "draw"}  # dimensions of what is kept of each draw


class Stopped(NamedTuple):
    """Where a stored run stands.

    state: tensors that the run goes on with. facts: of the call that began it. num_draws: of each
    chain, up to there. sums: array -> the SHA-256 of those draws. folder: how often the folder was
    replaced by another. is_over: the run has ended, and the folder is as it left it.
    """

    state: dict[str, Tensor]
    facts: dict[str, Any]
    num_draws: int
    sums: dict[str, str]
    folder: int
    is_over: bool


class Store:
    """The zarr folder of a run, made with its first draws, and locked until `close`.

    Beside it, until the run is complete, lies `path` + ".resume": the state of the chains after the
    last stored draw, as safetensors, written aside and renamed. Writing it is the commit: all that
    it counts on is on the disk by then. A folder is replaced, where draws that are in it change or
    chains are joined, by another that is written beside it; which one counts the file says, too.

    Args:
        path: of the folder, which must not exist unless a run is resumed.
        resume: go on with what is there. Default False.

    Attributes:
        facts: what identifies the run, to be set before anything is written.
        labels: names of the axes of what is written, likewise.
        complete: the run to be resumed has all its draws, which `finished` reads.
        stored_facts: of a complete run.

    Raises:
        BlockingIOError: another process is writing it.
        FileExistsError: `path` exists and is not to be resumed.
        FileNotFoundError: nothing to resume.
        OSError: the folder cannot be written to.
        ValueError: what is to be resumed is damaged.
    """

    def __init__(self, path: str | Path, *, resume: bool = False) -> None:
        self.path, self.facts = Path(path), dict[str, Any]()
        self.resume_file = StateFile(self.path.with_name(self.path.name + ".resume"), FORMAT)
        self.labels = Labels({})
        self._root: zarr.Group | None = None
        self._sums: dict[str, Any] = {}
        self._stopped: Stopped | None = None
        self._folder, self._committed = 0, 0
        self.complete, self.stored_facts = False, dict[str, Any]()
        self._lock: Lock | None = None
        # What is complete is read, perhaps where nothing can be written.
        if resume and is_sealed(self.path) and not self.resume_file.exists():
            remove_left_over(self.path)  # its process was killed after the last commit
        else:
            self._lock = Lock(self.path)
        try:
            self._find(resume)
        except BaseException:
            self.close()
            raise

    @property
    def chains(self) -> Path:
        """The folder of chains that run by themselves, each with a store of its own until the end.

        The folder of the whole run takes its place, with all that is in it, when all are joined.
        """
        return self.path.absolute() / "chains"

    def close(self) -> None:
        """Let others write here; once is enough."""
        if self._lock is not None:
            self._lock.release()

    def _find(self, resume: bool) -> None:
        """See what is there."""
        if not resume and self.path.exists():
            raise FileExistsError(
                f"save_to: {self.path} already holds another run; "
                "give a new path, remove it first, or go on with it by resume=True"
            )
        if not resume:
            return
        if self.resume_file.exists() and (self.path.is_dir() or not self.path.exists()):
            self._stopped = self._read()
            self._put_in_place(self._stopped.folder)
            if self._stopped.is_over:
                self.abandon()
        # Of a run that was killed while it made its folder nothing counts that is there.
        if self.path.exists() and not (self._stopped and not self._stopped.num_draws):
            self._open()
        if not self.resume_file.exists() and not self.complete:
            raise FileNotFoundError(
                f"resume=True: the run {self.path} was interrupted and lost a chain, or its file "
                f"{self.resume_file.path.name} is gone: it cannot be gone on with; "
                "xarray.open_datatree(path, engine='zarr') opens its draws"
                if self.path.exists()
                else f"resume=True: there is no run {self.path}, or it was stopped before its "
                "first commit; leave resume out to begin it"
            )

    def _open(self) -> None:
        """Open the folder of an earlier call."""
        found = sealed(self.path)
        try:
            self._root = self._opened()
            ended = self._root.attrs.get("interrupted") == 0
            with unknown_files_ignored():
                for _, group in self._root.groups():
                    list(group.arrays())  # all metadata are read
        except Exception as error:  # zarr's, JSON's, the system's: whatever lies there
            raise ValueError(
                f"resume=True: {self.path} is no folder that a run wrote, or it is damaged: "
                f"{wrong_file(self.path, error)}; begin a new run"
            ) from error
        # As long as the file lies there, a crash may have come in the middle of `finish`.
        self.complete = found is not None and ended and not self.resume_file.exists()
        self.stored_facts = {} if found is None else found.facts

    def _opened(self) -> zarr.Group:
        # Consolidated metadata still have the lengths of the interrupted run.
        return zarr.open_group(Noting(self.path), mode="r+", use_consolidated=False)

    def append(self, groups: Mapping[str, Arrays]) -> None:
        """Append draws (C, S', ...) to every group.

        Raises:
            OSError: the disk is full; what was committed before stays.
        """
        with self._told_if_full():
            if self._root is None:
                # Only now, so that a run that fails before its first draw leaves no folder behind.
                self._root = zarr.open_group(Noting(self.path), mode="w-")
            for group, arrays in groups.items():
                append_draws(self._root.require_group(group), arrays, self.labels)
        self._add(groups)

    def replace(self, groups: Mapping[str, Arrays]) -> None:
        """Put these draws in the place of all; the next `remember` makes it so.

        Raises:
            OSError: the disk is full; what was committed before stays.
        """
        with self._told_if_full():
            self._root = self._fresh_root(groups)
        self._sums = {}
        self._add(groups)

    def _fresh_root(self, groups: Mapping[str, Arrays]) -> zarr.Group:
        """Write draws to a folder beside, which the next commit puts in the place of this one."""
        self._folder += 1
        beside = self._beside(self._folder)
        shutil.rmtree(beside, ignore_errors=True)
        root = zarr.open_group(Noting(beside), mode="w-")
        for group, arrays in groups.items():
            append_draws(root.require_group(group), arrays, self.labels)
        return root

    def _beside(self, folder: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{folder}")

    def _put_in_place(self, folder: int) -> None:
        """Rename the folder that a commit has made the right one, if that is still to be done."""
        beside = self._beside(folder)
        if beside.exists():
            shutil.rmtree(self.path, ignore_errors=True)
            os.rename(beside, self.path)
            sync([self.path.parent])
        shutil.rmtree(self._beside(folder + 1), ignore_errors=True)  # never committed
        self._folder = folder

    def is_due(self) -> bool:
        """Whether a commit is worth its time by now."""
        return self.resume_file.is_due()

    def remember(
        self,
        state: Mapping[str, Tensor],
        found: Mapping[str, Any],
        draws: int,
        *,
        is_over: bool = False,
    ) -> None:
        """Commit: write what `recall` reads.

        Args:
            state: tensors that the run goes on with.
            found: more facts that a call to resume it must agree in.
            draws: of each chain, that are in the folder.
            is_over: there is nothing to go on with; the folder is as it is to be. Default False.

        Raises:
            OSError: the disk is full; what was committed before stays.
        """
        about = {
            "facts": {**self.facts, **found},
            "num_draws": draws,
            "sums": {name: running.hexdigest() for name, running in self._sums.items()},
            "folder": self._folder,
            "is_over": is_over,
        }
        with self._told_if_full():
            self.resume_file.write(state, about, after=self._new_files())
            if self._root is not None and self._beside(self._folder).exists():
                self._put_in_place(self._folder)
                self._root = self._opened()
        self._committed = draws

    def _new_files(self) -> list[Path]:
        return [] if self._root is None else self._root.store.take_new_files()

    def recall(self) -> Stopped:
        """Give what the last `remember` wrote.

        Raises:
            ValueError: the file is damaged.
        """
        stopped, self._stopped = self._stopped or self._read(), None
        self._committed = stopped.num_draws
        return stopped

    def _read(self) -> Stopped:
        try:
            state, about = self.resume_file.read()
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
        self.resume_file.remove()
        self._stopped = None

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
                    f"{name} holds {held} draws, but {self.resume_file.path.name} goes on from "
                    f"draw {stopped.num_draws}"
                )
            if tuple(named or ()) != dimension_names(key, values.ndim, self.labels):
                raise self._other_draws(f"{name} has the dimensions {named}")
            found.setdefault(group, {})[key] = values
        self._add(found)
        for name, running in self._sums.items():
            if running.hexdigest() != stopped.sums[name]:
                raise self._other_draws(f"{name} does not hold the draws that were written")
        return found

    def cut(self, num_draws: int) -> None:
        """Leave these first draws alone, as if the run had been killed after them."""
        if self.path.exists():
            break_seal(self.path)
            remove_unfinished(self.path)
        if self._root is not None:
            with self._told_if_full():
                cut_draws(self._root, num_draws)
        elif self.path.exists():  # killed while it was made
            shutil.rmtree(self.path)

    def finish(self, tree: xr.DataTree, *, complete: bool) -> None:
        """Write what is known only at the end: coordinates, attributes, which chains are good.

        Only what may be averaged stays in the folder: where a chain was lost, another folder takes
        its place.

        Raises:
            OSError: the disk is full; what was committed before stays.
        """
        is_other = self._root is None or not holds(self._root, tree)
        with self._told_if_full():
            if is_other:
                kept = [name for name, node in tree.children.items() if {*node.sizes} >= DRAWS]
                self._root = self._fresh_root(
                    {
                        group: {str(k): v.values for k, v in tree[group].data_vars.items()}
                        for group in kept
                    }
                )
            assert self._root is not None
            write_end(self._root, tree)
            sync(self._new_files())
            seal(self._root.store.root, self.facts, tree)
        if is_other:
            self.remember({}, {}, 0, is_over=True)
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

    @contextmanager
    def _told_if_full(self) -> Iterator[None]:
        def kept() -> str:
            if not self.resume_file.exists():
                return ""
            draws = f"the first {self._committed} draws of each chain are"
            warm_up = (
                "what each chain committed is" if self.chains.exists() else "the warm-up so far is"
            )
            return draws if self._committed else warm_up

        with told_if_full(self.path, kept):
            yield

    def _other_draws(self, wrong: str) -> ValueError:
        return ValueError(
            f"resume=True: {self.path} was changed since its run was stopped: {wrong}; "
            "begin a new run"
        )


def is_stored(path: Path) -> bool:
    """Whether there is a run at a path that can be gone on with, or is complete."""
    if path.with_name(path.name + ".resume").exists():
        return True
    try:
        about = json.loads((path / METADATA).read_bytes())
        return is_sealed(path) and about["attributes"]["interrupted"] == 0
    except (OSError, ValueError, KeyError, TypeError):
        return False
