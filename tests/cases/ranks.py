"""Calls made by several ranks of `torch.distributed` at once, each in a forked process."""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

MOST_SECONDS = 900
needs_ranks = pytest.mark.skipif(
    not (hasattr(os, "fork") and distributed.is_available() and distributed.is_gloo_available()),
    reason="needs fork, and torch.distributed with gloo",
)


def on_ranks(folder: Path, call: Callable[[int], Any], count: int = 2) -> list[Any]:
    """Make a call of the rank's number on each of several ranks; give what each returned or raised.

    Args:
        folder: where the ranks find each other, and leave their results.
        call: gives what can be pickled.
        count: R, 2 by default.
    """
    children = [_forked(folder, call, rank, count) for rank in range(count)]
    for child in children:
        os.waitpid(child, 0)
    return [pickle.loads((folder / f"rank {rank}").read_bytes()) for rank in range(count)]


def _forked(folder: Path, call: Callable[[int], Any], rank: int, count: int) -> int:
    child = os.fork()
    if child:
        return child
    try:
        signal.alarm(MOST_SECONDS)
        torch.set_num_threads(1)
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder / 'meeting'}",
            rank=rank,
            world_size=count,
            timeout=timedelta(seconds=MOST_SECONDS),
        )
        try:
            found = call(rank)
        except BaseException as error:
            traceback.print_exc()
            found = error if isinstance(error, Exception) else RuntimeError(repr(error))
        (folder / f"rank {rank}").write_bytes(pickle.dumps(found))
    finally:
        os._exit(0)
