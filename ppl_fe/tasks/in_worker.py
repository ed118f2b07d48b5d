"""What a worker does with a task."""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

# Pyro's stack of handlers is one a process: of a pool's threads one samples at a time.
_ALONE = threading.RLock()
WATCHED_EVERY = 0.2  # seconds


def in_worker(function: Callable[..., Any], record: tuple[Any, ...]) -> bytes:
    """Call a function by one thread of torch, and give what it returns, pickled.

    Workers are the parallelism: with more threads they would fight for cores, and a table's last
    digits would depend on how many there are.

    Args:
        function: importable by its name.
        record: its arguments.
    """
    with _ALONE:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            # Pickled here: pools of processes would send tensors by shared memory, as open files.
            return pickle.dumps(function(*record))
        finally:
            torch.set_num_threads(threads)


def end_with_parent(parent: int, told: Any = None) -> None:
    """End this process soon after its parent's end, however that came, or when it is told to.

    Args:
        parent: its process.
        told: a number that both share, other than 0 when this process is to end. Default none.
    """

    def watch() -> None:
        while os.getppid() == parent and not (told is not None and told.value):
            time.sleep(WATCHED_EVERY)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
