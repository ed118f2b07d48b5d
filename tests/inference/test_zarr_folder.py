"""The folder of a run: which file an error is of, and what a folder of something else is called."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.core.buffer import default_buffer_prototype

from ppl_fe.inference.record.zarr_folder import Noting, read_stored


def content() -> zarr.core.buffer.Buffer:
    return default_buffer_prototype().buffer.from_bytes(b"{}")


def test_what_was_written_is_noted_by_either_call(tmp_path: Path) -> None:
    store = Noting(tmp_path / "run.zarr")
    asyncio.run(store.set("a/zarr.json", content()))
    store.set_sync("b/zarr.json", content())
    new = store.take_new_files()
    written = [store.root / "a/zarr.json", store.root / "b/zarr.json"]
    assert all(file.read_bytes() == b"{}" for file in written)
    folders = [tmp_path, store.root, store.root / "a", store.root / "b"]
    assert sorted(new) == sorted([*written, *folders])
    assert store.take_new_files() == []


def test_an_error_names_the_file_that_it_is_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("a text")
    with pytest.raises(OSError, match="file") as named:  # the system's own name stays
        asyncio.run(Noting(tmp_path).set("file/zarr.json", content()))
    assert str(named.value.filename).startswith(str(tmp_path / "file"))

    async def full(self: Noting, key: str, value: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zarr.storage.LocalStore, "set", full)
    with pytest.raises(OSError, match="No space left on device") as told:
        asyncio.run(Noting(tmp_path).set("a/zarr.json", content()))
    assert told.value.filename == str(tmp_path / "a/zarr.json")


def test_a_folder_that_cannot_be_read_is_said_to_be_damaged(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "run.zarr", mode="w")
    group.create_group("posterior").create_array(
        "w", data=np.zeros((2, 3)), dimension_names=("chain", "draw")
    )
    assert read_stored(tmp_path / "run.zarr")["posterior"]["w"].shape == (2, 3)
    (tmp_path / "run.zarr" / "posterior" / "zarr.json").write_text("{")
    with pytest.raises(ValueError, match=r"damaged, or .*: posterior/zarr\.json is no JSON; take"):
        read_stored(tmp_path / "run.zarr")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(ValueError, match=r"empty\.zarr is damaged, or no folder of draws: \w+Err"):
        read_stored(tmp_path / "empty.zarr")
