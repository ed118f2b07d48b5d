"""A full disk is named, with what is kept; with room again the run goes on, and no file is lost."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr
from cases.stored_runs import run
from zarr.storage import LocalStore

from ppl_fe.files import safetensors_io
from ppl_fe.files.no_room import told_if_full
from ppl_fe.files.safetensors_io import read_checked, write_checked
from ppl_fe.inference.record import recorder as draws_module

NO_ROOM = r"^\[Errno 28\] save_to: no room for .*run\.zarr.* \(No space left on device\); "


@contextmanager
def full_after(writes: int) -> Iterator[Callable[[], int]]:
    """The disk is full at every write after so many, of a chunk, metadata or a resume file."""
    done, put, write = 0, LocalStore.set, safetensors_io._write

    def is_full() -> bool:
        nonlocal done
        done += 1
        return done > writes

    async def set_or_fail(self: Any, key: str, value: Any) -> None:
        if is_full():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        await put(self, key, value)

    def save_or_fail(tensors: Any, file: Path, metadata: Any) -> None:
        if is_full():
            Path(file).write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(tensors, file, metadata)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalStore, "set", set_or_fail)
        patch.setattr(safetensors_io, "_write", save_or_fail)
        yield lambda: done


@pytest.fixture(autouse=True)
def _blocks_of_four_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws_module, "BLOCK_VALUES", 4 * 2 * 2)


@pytest.fixture(scope="module")
def whole() -> xr.DataTree:
    tree: xr.DataTree = run(None)
    return tree


def fill_and_go_on(writes: int, path: Path, whole: xr.DataTree) -> str:
    with full_after(writes), pytest.raises(OSError, match=NO_ROOM) as error:
        run(path)
    message = str(error.value)
    until = time.monotonic() + 10
    while any("partial" in file.name for file in path.parent.rglob("*")):
        assert time.monotonic() < until  # files that zarr's threads were writing are whole by now
        time.sleep(0.01)
    resumed = run(path, resume=True) if "resume=True" in message else run(path)
    for tree in (resumed, xr.open_datatree(path, engine="zarr").load()):
        for group in whole.children:
            xr.testing.assert_identical(
                tree[group].to_dataset().drop_attrs(), whole[group].to_dataset().drop_attrs()
            )
    assert list(path.parent.iterdir()) == [path]
    return message


def test_what_is_kept_is_said(tmp_path: Path, whole: xr.DataTree) -> None:
    with full_after(10**6) as count:
        run(tmp_path / "whole.zarr")
        last = count() - 1
    ends = {
        0: "nothing is kept: make room, and repeat the call",
        1: "the warm-up so far is kept: make room, and repeat the call with resume=True",
        last: "the first 12 draws of each chain are kept: make room, and repeat the call with "
        "resume=True",
    }
    for writes, end in ends.items():
        folder = tmp_path / str(writes)
        folder.mkdir()
        assert fill_and_go_on(writes, folder / "run.zarr", whole).endswith(end)


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_write(tmp_path: Path, whole: xr.DataTree) -> None:
    with full_after(10**6) as count:
        run(tmp_path / "whole.zarr")
        last = count()
    for writes in range(2, last, 3):
        folder = tmp_path / str(writes)
        folder.mkdir()
        fill_and_go_on(writes, folder / "run.zarr", whole)


def test_an_old_file_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "task.safetensors"
    write_checked(path, {"x": torch.ones(3)}, {"n": 1}, "example 1")
    with full_after(0), pytest.raises(OSError, match=r"No space left on device: .*task\.safet"):
        write_checked(path, {"x": torch.zeros(3)}, {"n": 2}, "example 1")
    tensors, about = read_checked(path, "example 1", "example", ValueError)
    assert (tensors["x"] == 1).all()
    assert about == {"n": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_other_errors_are_passed_on_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match=r"^not yours$"), told_if_full(tmp_path, lambda: ""):
        raise PermissionError("not yours")
    with pytest.raises(TypeError, match=r"x is of torch\.complex128, which safetensors has not"):
        write_checked(
            tmp_path / "task.safetensors",
            {"x": torch.ones(3, dtype=torch.cdouble)},
            {},
            "example 1",
        )
    assert not list(tmp_path.iterdir())
