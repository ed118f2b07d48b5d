"""Locks where there are none, where locking fails, and what another process is called."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest

from ppl_fe.files.lock import Lock


def test_on_windows_nothing_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        first, second = (Lock(tmp_path / "run.zarr") for _ in range(2))
        first.release()
        second.release()
    assert not list(tmp_path.iterdir())


def test_an_error_of_locking_itself_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl", reason="Windows has no flock")

    def broken(file: int, what: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match=r"cannot be written to .Input/output error"):
        Lock(tmp_path / "run.zarr")


def test_an_owner_that_does_not_say_who_it_is(tmp_path: Path) -> None:
    held = Lock(tmp_path / "run.zarr")
    (tmp_path / "run.zarr.lock").write_text("no JSON")
    with pytest.raises(BlockingIOError, match="is being written by another process; wait for it"):
        Lock(tmp_path / "run.zarr")
    held.release()
