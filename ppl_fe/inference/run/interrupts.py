"""Ctrl-C between two steps of a run, and never within one."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

from ppl_fe.ranks import are_several


class Interrupts:
    """Hold Ctrl-C back until `check` is called, while this context lasts.

    A second Ctrl-C is raised at once, wherever it falls. Where another handler than Python's own is
    in place, outside the main thread, or where several ranks run a chain, nothing changes: the
    others would wait for a rank that stopped at a step of its own.

    Example:
        >>> with Interrupts() as interrupts:
        ...     interrupts.check()
    """

    def __enter__(self) -> Self:
        self._asked = False
        in_main = threading.current_thread() is threading.main_thread()
        usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        self._ours = in_main and usual and not are_several()
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
        """Raise a Ctrl-C that was held back.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        if self._asked:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
