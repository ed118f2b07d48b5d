"""What to say when the disk is full: which file, how much is kept, and what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def told_if_full(path: Path, kept: Callable[[], str]) -> Iterator[None]:
    """Raise an error of a full disk in our words; any other as it is.

    Args:
        path: what is written in the block.
        kept: says how much of the run is, as in "8 draws are"; "" for nothing.

    Raises:
        OSError: there is no room, or a quota or the largest size of a file is reached.

    Example:
        >>> with told_if_full(Path("run.zarr"), lambda: "8 draws are"):
        ...     raise OSError(errno.ENOSPC, "No space left on device")
        Traceback (most recent call last):
        OSError: [Errno 28] save_to: no room for run.zarr (No space left on device); 8 draws are \
kept: make room, and repeat the call with resume=True
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        advice = "make room, and repeat the call" + bool(kept()) * " with resume=True"
        raise OSError(
            error.errno,
            f"save_to: no room for {error.filename or path} ({error.strerror}); "
            f"{kept() or 'nothing is'} kept: {advice}",
        ) from error


@contextmanager
def named(file: Path) -> Iterator[None]:
    """Let an error of the system say of which file it is.

    Args:
        file: what is written in the block.

    Raises:
        OSError: that of the block, with the file's name where it has none.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(file)) from error
