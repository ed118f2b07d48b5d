"""A ranking on a Dask cluster over TCP, of which a worker is killed and another is slow."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cases.lines import DATA, Line, Seen, assert_same, rank, state

README = Path(__file__).parents[2] / "README.md"
STATES = {f"{k}": state(0.1 * k, float(k // 2)) for k in range(24)}  # two a lot

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.filterwarnings("default"),  # Dask's own, of ports and of what was killed
]


@contextmanager
def started(*command: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_" + command[0], *command[1:]],
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def scheduler(folder: Path) -> Iterator[str]:
    """Start a scheduler on a free port; give its address."""
    file = folder / "scheduler.json"
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    with started("scheduler", *options, "--scheduler-file", str(file)):
        until = time.monotonic() + 300
        while not file.exists() or "tcp://" not in file.read_text():
            assert time.monotonic() < until
            time.sleep(0.1)
        found = re.search(r"tcp://[\d.:]+", file.read_text())
        assert found
        yield found[0]


@contextmanager
def worker(address: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    options = ["--no-nanny", "--nthreads", "1", "--memory-limit", "0", "--no-dashboard"]
    with started("worker", address, *options, **environment) as process:
        yield process


def test_the_table_is_that_of_this_process_though_a_worker_dies(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    alone = rank(STATES)
    seen = tmp_path / "seen"
    seen.mkdir()
    with (
        scheduler(tmp_path) as address,
        worker(address) as killed,
        worker(address),
        worker(address, SLOW="1"),
        distributed.Client(address) as client,
    ):
        client.wait_for_workers(3, timeout=300)

        def kill() -> None:
            """End a worker in the middle of its second task."""
            until = time.monotonic() + 600
            while sum(f"{file}".endswith(f" {killed.pid}") for file in seen.iterdir()) < 2:
                if time.monotonic() > until:
                    return
                time.sleep(0.01)
            os.kill(killed.pid, signal.SIGKILL)

        killing = threading.Thread(target=kill)
        killing.start()
        table = rank(STATES, Seen(seen), executor=client.get_executor())
        killing.join()
    assert_same(table, alone)
    by_process = [file.name.split() for file in seen.iterdir()]
    assert len({process for _, process in by_process}) == 3
    times = Counter(number for number, _ in by_process)
    again = {number for number, count in times.items() if count > 1}
    assert set(times) == {f"{k}" for k in range(12)}
    assert again & {number for number, process in by_process if process == str(killed.pid)}


def test_the_lines_of_the_readme(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    block = re.search(r"```py\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert block
    few = dict(list(STATES.items())[:3])
    short = SimpleNamespace(rank_checkpoints=lambda states, *_, **more: rank(states, **more))
    names: dict[str, Any] = {"fe": short, "module": Line(), "data": DATA, "checkpoints": few}
    with scheduler(tmp_path) as address, worker(address):
        code = block[1].replace("tcp://scheduler:8786", address)
        assert address in code
        exec(code, names)
        names["client"].close()
    assert_same(names["table"], rank(few))
