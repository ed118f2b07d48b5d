"""A run that one file keeps: locked while it runs, gone on with by the same call.

Of several ranks (`ppl_fe.ranks`) the first one has the file, and tells the others what is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from ppl_fe.files.lock import Lock
from ppl_fe.files.no_room import told_if_full
from ppl_fe.files.state_file import StateFile
from ppl_fe.ranks import is_first, told_by_first

State = tuple[dict[str, Tensor], dict[str, Any]]  # tensors, and what JSON takes


class KeptRun:
    """The file of a run and its lock, held until `close`.

    The file stays when the run is over, with its last state: the same call then has its result at
    once.

    Args:
        path: the file, which must not exist unless the run is resumed.
        file_format: name and version of what it holds.
        resume: go on with the run in it. Default False.

    Attributes:
        facts: what identifies the run, to be set before a commit.
        stopped: where the run to be resumed stands; None for a new one.

    Raises:
        BlockingIOError: another process is writing it.
        FileExistsError: `path` exists and is not to be resumed.
        FileNotFoundError: nothing to resume.
        OSError: the folder cannot be written to.
        ValueError: what is to be resumed is damaged.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from contextlib import closing
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with closing(KeptRun(f"{folder}/run", "example 1")) as kept:
        ...         kept.commit(lambda: ({"x": torch.ones(1)}, {}), "3 steps")
        ...     with closing(KeptRun(f"{folder}/run", "example 1", resume=True)) as kept:
        ...         kept.stopped
        ({'x': tensor([1.])}, {'facts': {}, 'so_far': '3 steps'})
    """

    def __init__(self, path: str | Path, file_format: str, *, resume: bool = False) -> None:
        self.path, self._so_far = Path(path), ""
        self.facts: dict[str, Any] = {}
        self._file = StateFile(self.path, file_format)
        self._lock: Lock | None = None
        self.stopped: State | None = told_by_first(partial(self._opened, resume))
        if self.stopped is not None:
            self._so_far = self.stopped[1]["so_far"]

    def is_due(self) -> bool:
        """Whether a commit is worth its time by now."""
        return is_first() and self._file.is_due()

    def commit(self, state: Callable[[], State], so_far: str) -> None:
        """Write where the run stands.

        Args:
            state: gives it.
            so_far: how far it has come, in words: "3 steps".

        Raises:
            OSError: the disk is full; what was committed before stays.
        """
        if is_first():
            tensors, about = state()
            with told_if_full(self.path, lambda: self._so_far and f"the first {self._so_far} are"):
                self._file.write(tensors, {**about, "facts": self.facts, "so_far": so_far})
        self._so_far = so_far

    def stop(self, what: str) -> KeyboardInterrupt:
        """Say what Ctrl-C has ended, after a commit."""
        return KeyboardInterrupt(
            f"{what} was stopped after {self._so_far}, which {self.path} keeps: the same call with "
            "resume=True goes on with them"
        )

    def close(self) -> None:
        """Let others write here; once is enough."""
        if self._lock is not None:
            self._lock.release()

    def _opened(self, resume: bool) -> State | None:
        """Lock the file, and read where the run stands that is in it."""
        self._lock = Lock(self.path)
        try:
            if resume:
                return self._read()
            if self._file.exists():
                raise FileExistsError(
                    f"save_to: {self.path} already holds another run; give a new path, remove it "
                    "first, or go on with it by resume=True"
                )
        except BaseException:
            self.close()
            raise
        return None

    def _read(self) -> State:
        if not self._file.exists():
            raise FileNotFoundError(
                f"resume=True: there is no run {self.path}; leave resume out to begin it"
            )
        try:
            return self._file.read()
        except ValueError as error:
            raise ValueError(f"resume=True: {error}; begin a new run") from error


class _Held(Protocol):
    def close(self) -> None: ...


Held = TypeVar("Held", bound=_Held)


@contextmanager
def opened(
    save_to: str | Path | None, what: str, make: Callable[[Path], Held], *, resume: bool
) -> Iterator[Held | None]:
    """Open what keeps a run for as long as the block lasts; None where none is asked for.

    Args:
        save_to: its path, or None.
        what: the run, in a word.
        make: makes what holds the path until it is closed.
        resume: go on with what is there.

    Raises:
        ValueError: `resume` without a path; and what `make` raises.

    Example:
        >>> with opened(None, "run", lambda path: KeptRun(path, "example 1"), resume=False) as kept:
        ...     kept is None
        True
    """
    if save_to is None:
        if resume:
            raise ValueError(f"resume=True goes on with the {what} at save_to; give save_to")
        yield None
        return
    kept = make(Path(save_to))
    try:
        yield kept
    finally:
        kept.close()


def kept_run(
    save_to: str | Path | None, file_format: str, *, resume: bool
) -> AbstractContextManager[KeptRun | None]:
    """Open the file of a run, as `opened` does.

    Args:
        save_to: the file, or None.
        file_format: name and version of what it holds.
        resume: go on with the run in it.

    Raises:
        ValueError: `resume` without a file; and what `KeptRun` raises.
    """
    return opened(
        save_to, "run", lambda path: KeptRun(path, file_format, resume=resume), resume=resume
    )
