"""A call in a process of its own, ended at one of its file operations, or after some time."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"}
REMOVALS = {"os.remove", "os.rmdir"}  # of a tree: by names in a folder that is open
WRITABLE = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def in_a_process(call: Callable[[], Any]) -> int:
    """Give the exit status of a forked process that makes the call: −9 where it was killed."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            call()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def ended_after(seconds: float, call: Callable[[], Any]) -> bool:
    """End the call after so much processor time, as kill -9 does; False if it was over before.

    By the processor's time rather than the clock's, so that other work on the machine does not
    shift the moment. The timer's signal has no handler: the process is gone, and no line of Python
    runs any more.

    Args:
        seconds: of processor time.
        call: what a forked process does.
    """

    def timed() -> None:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        call()
        signal.setitimer(signal.ITIMER_PROF, 0.0)

    status = in_a_process(timed)
    assert status in (0, -signal.SIGPROF), f"the call failed: exit status {status}"
    return status != 0


def processor_seconds(call: Callable[[], Any]) -> float:
    """Measure the processor time of a call in a forked process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert in_a_process(call) == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def killed_at(operation: int, folder: Path, call: Callable[[], Any]) -> bool:
    """Kill the call in place of this one of its changes of files in a folder; False if it ended.

    Args:
        operation: counted from 0.
        folder: whose files count, and those below.
        call: what a forked process does.
    """
    count, inside = 0, str(folder)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        opens = event == "open" and isinstance(args[2], int) and args[2] & WRITABLE
        of_tree = event in REMOVALS and args[1] != -1
        if of_tree or ((opens or event in WRITES) and str(args[0]).startswith(inside)):
            if count == operation:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

    def hooked() -> None:
        sys.addaudithook(hook)
        call()

    status = in_a_process(hooked)
    assert status in (0, -signal.SIGKILL), f"the call failed: exit status {status}"
    return status != 0
