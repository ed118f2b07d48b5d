"""One process at a time writes to a path: a lock that the system frees when its owner dies."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path

from ppl_fe.files.syncing import sync

# What file systems answer that cannot lock: some that are mounted over a network.
CANNOT_LOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


class Lock:
    """A lock on what is at `path`, taken when it is made: the file `path` + ".lock".

    The lock is the system's (`flock`) on that file and not the file itself: it is gone with the
    process, however that ends, so that the file of a killed one is no hindrance. Within a process,
    too, there is one at a time. On Windows nothing is locked.

    Args:
        path: what is to be written; its folder is made if need be.

    Raises:
        BlockingIOError: another process, or another call in this one, writes there.
        OSError: the folder cannot be written to.

    Warns:
        RuntimeWarning: the file system cannot lock.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lock = Lock(Path(folder) / "run.zarr")
        ...     try:
        ...         Lock(Path(folder) / "run.zarr")
        ...     except BlockingIOError:
        ...         print("taken")
        ...     lock.release()
        ...     Lock(Path(folder) / "run.zarr").release()
        taken
    """

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + ".lock")
        self._file: int | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._take(path)
        except BlockingIOError:
            raise
        except OSError as error:  # before a run has cost anything
            raise OSError(
                error.errno, f"save_to: {path.parent} cannot be written to ({error.strerror})"
            ) from error

    def release(self) -> None:
        """Free it, and remove its file; once is enough."""
        if self._file is None:
            return
        # In this order: whoever opened the file in between sees that it is no longer at its place.
        self.path.unlink(missing_ok=True)
        os.close(self._file)
        self._file = None

    def _take(self, path: Path) -> None:
        if sys.platform == "win32":
            return
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                if not _locked(file):
                    raise BlockingIOError(
                        errno.EAGAIN,
                        f"save_to: {path} is being written by {_owner(file)}; wait for it, stop "
                        "it, or give another path",
                    )
                if self._is_at_its_place(file):
                    os.ftruncate(file, 0)
                    os.write(file, _about_this_process())
                    sync([self.path])
                    self._file = file
                    return
            finally:
                if self._file is None:
                    os.close(file)

    def _is_at_its_place(self, file: int) -> bool:
        """Whether no one has removed the file between its opening and its locking."""
        try:
            return os.path.samestat(os.fstat(file), os.stat(self.path))
        except FileNotFoundError:
            return False


def remove_left_over(path: Path) -> None:
    """Remove the file of a lock on `path` whose owner was killed, if there is one."""
    if path.with_name(path.name + ".lock").exists():
        with suppress(OSError):  # it has an owner, or nothing can be written here
            Lock(path).release()


def _locked(file: int) -> bool:
    """Lock a file if no one else has; say whether it is."""
    import fcntl  # not there on Windows

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in CANNOT_LOCK:
            raise
        warnings.warn(
            f"save_to: this file system cannot lock files ({error.strerror}): begin no second run "
            "at the same path",
            RuntimeWarning,
            stacklevel=2,
        )
    return True


def _about_this_process() -> bytes:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    own = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
    return json.dumps(own).encode()


def _owner(file: int) -> str:
    """Say in words who has locked a file, as far as it says."""
    try:
        found = json.loads(os.pread(file, 4096, 0))
        return f"process {found['pid']} on {found['host']}, since {found['since']}"
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return "another process"
