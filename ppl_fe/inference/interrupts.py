"""Ctrl-C that waits for a safe place: between two steps, never in the middle of a write."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Self


class Interrupts:
    """While this context lasts, Ctrl-C is only noted; `check` then raises it.

    A second Ctrl-C is raised at once, wherever it falls. Where another handler than Python's own is
    in place, or outside the main thread, nothing changes.

    Example:
        >>> with Interrupts() as interrupts:
        ...     interrupts.check()
    """

    def __enter__(self) -> Self:
        self._asked = False
        in_main = threading.current_thread() is threading.main_thread()
        self._ours = in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._ours:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def check(self) -> None:
        """Raise what was noted.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        if self._asked:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
