"""What is on the disk: files and folders are synced, and what is gone is passed over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ppl_fe.files.syncing import sync


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The inodes that the system is asked to sync, in their order."""
    found: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: found.append(os.fstat(file).st_ino))
    return found


@pytest.mark.parametrize("count", [1, 20])
def test_files_and_folders_are_synced_and_what_is_gone_is_not(
    count: int, tmp_path: Path, synced: list[int]
) -> None:
    written = [tmp_path / f"{number}.txt" for number in range(count)]
    for file in written:
        file.write_text("whole")
    sync([*written, tmp_path])
    assert sorted(synced) == sorted(path.stat().st_ino for path in (*written, tmp_path))
    sync([tmp_path / "gone.txt"])
    assert len(synced) == count + 1


def test_on_windows_no_folder_is_synced(
    tmp_path: Path, synced: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.txt"
    file.write_text("whole")
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        sync([tmp_path, file])
    assert synced == [file.stat().st_ino]


def test_an_error_of_the_disk_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(file: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        sync([tmp_path])
