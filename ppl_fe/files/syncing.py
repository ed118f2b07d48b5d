"""Wait until what was written is on the disk, and not in the system's memory alone."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

AT_ONCE = 16  # waits that share a write of the file system's journal


def sync(paths: Iterable[Path]) -> None:
    """Return once these files and folders would outlive a power cut.

    A new or renamed file does so only when its folder is synced, too. What is not there (any more)
    is passed over.

    Args:
        paths: of files and folders.

    Raises:
        OSError: the disk is full, or broken.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "a.txt").write_text("whole")
        ...     sync([Path(folder) / "a.txt", Path(folder), Path(folder) / "b.txt"])
    """
    wanted = list(paths)
    if len(wanted) < 3:
        for path in wanted:
            _sync(path)
        return
    with ThreadPoolExecutor(min(AT_ONCE, len(wanted))) as pool:
        list(pool.map(_sync, wanted))


def _sync(path: Path) -> None:
    on_windows = os.name == "nt"  # has no folders to be synced, and no sync of what is only read
    if on_windows and path.is_dir():
        return
    try:
        file = os.open(path, os.O_RDWR if on_windows else os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(file)
    finally:
        os.close(file)
