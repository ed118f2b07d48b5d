"""One process a chain, for networks and programs that gain nothing from chains side by side.

`chain_method="parallel"` forks: a program with whatever it has closed over, open files and modules
of a notebook among them, is there in the child, and nothing is copied or written. With an executor
or `n_jobs` the same chains are tasks, which have to be pickled, and may run on other machines. A
chain whose process is gone is drawn anew, and what draws it goes on with what it had kept.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_fe.diverged import DivergedError
from ppl_fe.files.no_room import FULL
from ppl_fe.inference.record.zarr_folder import Arrays
from ppl_fe.tasks.folder import TaskFolder, taken
from ppl_fe.tasks.in_worker import end_with_parent
from ppl_fe.tasks.workers import Workers


class Part(NamedTuple):
    """What a chain's process sends back.

    draws: (1, S, ...) by group and name. moments: their sums. facts: what the run found out.
    failure: why the chain failed, or "". message: the error to raise if no other chain is left.
    """

    draws: dict[str, Arrays]
    moments: dict[str, Tensor]
    facts: dict[str, Any]
    failure: str = ""
    message: str = ""


class Joined(NamedTuple):
    """The parts of all chains side by side, (C, S, ...), and why each failed chain did."""

    draws: dict[str, Arrays]
    moments: dict[str, Tensor]
    facts: dict[str, Any]
    failed: dict[int, str]


Draw = Callable[[int], Part]
_draw: Draw | None = None  # inherited by the forked processes: a model needs no pickling


def in_processes(draw: Draw, num_chains: int) -> list[Part]:
    """Run `draw` for every chain, in as many processes at once as there are cores.

    The processes end with this one, however it ends. Where one of them dies, its chain and those
    that it took along are run again, each by itself.

    Args:
        draw: chain -> its part, called in a process by itself.
        num_chains: C.

    Raises:
        RuntimeError: a platform that cannot fork; a chain whose process has died twice.
    """
    global _draw
    if "fork" not in multiprocessing.get_all_start_methods():
        raise RuntimeError(
            "chain_method='parallel' forks the process, which this platform cannot; "
            "use 'vectorized' or 'sequential'"
        )
    _draw = draw
    try:
        found = _round(range(num_chains))
        for chain in range(num_chains):
            if chain not in found:
                found |= _round([chain])
            if chain not in found:
                raise RuntimeError(
                    f"chain {chain}: its process died twice, the second time alone; the system "
                    "kills one where memory runs out: lower num_chains, or see its log"
                )
    finally:
        _draw = None
    return [found[chain] for chain in range(num_chains)]


def _round(chains: Sequence[int]) -> dict[int, Part]:
    """Run some chains; give the parts of those that came to their end."""
    found, context = {}, multiprocessing.get_context("fork")
    told = context.RawValue("b", 0)
    count = min(len(chains), os.cpu_count() or 1)
    pool = ProcessPoolExecutor(count, context, initializer=_begin, initargs=(os.getpid(), told))
    try:
        parts = {chain: pool.submit(_in_child, chain) for chain in chains}
        for chain, part in parts.items():
            with suppress(BrokenProcessPool):
                found[chain] = part.result()
    except BaseException:
        told.value = 1  # what the others have not committed is not waited for
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return found


def _begin(parent: int, told: Any) -> None:
    """Prepare a process for chains. A terminal's Ctrl-C reaches it, too, but its parent ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)  # the processes are the parallelism
    end_with_parent(parent, told)


def _in_child(chain: int) -> Part:
    assert _draw is not None
    return _part(_draw, chain)


def _part(draw: Draw, chain: int) -> Part:
    try:
        return draw(chain)
    except FloatingPointError as error:
        failed = error.failed if isinstance(error, DivergedError) else {}
        reason = failed.get(0, str(error))
        return Part({}, {}, {}, reason, str(error))


def at_workers(
    workers: Workers, draw: Draw, num_chains: int, folder: Path | None, *, progress: bool
) -> list[Part]:
    """Run `draw` for every chain, each as a task.

    Args:
        workers: that take them.
        draw: chain -> its part; it is pickled.
        num_chains: C.
        folder: what workers see, made and removed; None for a temporary one.
        progress: show a bar of chains.

    Raises:
        BlockingIOError: a task of an earlier call still draws one of the chains.
        OSError: the disk is full.
        TypeError: the program, or what it has closed over, cannot be pickled.
        RuntimeError: a chain whose task has failed twice; what the program itself raises is raised
            as it is.
    """
    with closing(TaskFolder(folder)) as made:
        made.put("kernel", draw)
        found: dict[int, Part] = {}
        for chain, part, tries, _ in workers.run(
            _at_a_worker, range(num_chains), lambda k: (made.path, k), unit="chain",
            progress=progress,
        ):  # fmt: skip
            if isinstance(part, Exception):
                # The disk is full, or a task of an earlier call still draws the chain.
                of_store = isinstance(part, OSError) and part.errno in {errno.EAGAIN, *FULL}
                if of_store or (tries == 1 and not isinstance(part, ChildProcessError)):
                    raise part
                raise RuntimeError(f"chain {chain} failed, {tries} times tried: {part}") from part
            found[chain] = part
    return [found[chain] for chain in range(num_chains)]


def _at_a_worker(folder: Path, chain: int) -> Part:
    return _part(taken(folder, "kernel"), chain)


def joined(parts: Sequence[Part]) -> Joined:
    """Join the parts of all chains; a failed one is there as zeros, to be left out by its number.

    Args:
        parts: one a chain.

    Raises:
        DivergedError: every chain has failed.
    """
    good = [part for part in parts if not part.failure]
    if not good:
        raise DivergedError(parts[0].message)
    model = good[0]
    draws = {
        group: {
            name: np.concatenate(
                [p.draws[group][name] if p.draws else np.zeros_like(values) for p in parts]
            )
            for name, values in arrays.items()
        }
        for group, arrays in model.draws.items()
    }
    moments = {
        name: values
        if name == "draws"
        else torch.cat(
            [p.moments[name] if p.moments else torch.zeros_like(values) for p in parts], -2
        )
        for name, values in model.moments.items()
    }
    failed = {chain: part.failure for chain, part in enumerate(parts) if part.failure}
    return Joined(draws, moments, _facts([part.facts for part in parts], model.facts), failed)


def _facts(each: Sequence[Mapping[str, Any]], model: Mapping[str, Any]) -> dict[str, Any]:
    """Join what tuning found, chain after chain; take all else from the first good chain."""
    return {
        name: torch.cat([facts.get(name, torch.full_like(value, torch.nan)) for facts in each])
        if isinstance(value, Tensor)
        else value
        for name, value in model.items()
    }
