"""Runs of every kind that end early, killed or on a full disk, and are gone on with."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from cases.killed import ended_after, processor_seconds
from cases.selection import means, observed_weights, select
from cases.stored_runs import counted, run
from cases.tuning import LABELS, X, tune
from torch import nn

import ppl_fe as fe
from ppl_fe.files import syncing
from ppl_fe.free_energy import lots
from ppl_fe.inference.record import recorder as draws_module

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

STEPS = 12 + 20  # of a lot
STATES = {f"w={k / 20}": {"weight": torch.full((1, 4), k / 20)} for k in range(12)}


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws_module, "BLOCK_VALUES", 4 * 2 * 4)  # four draws
    monkeypatch.setattr(lots, "MOST_CHAINS", 8)  # four checkpoints


def draws(**how: Any) -> xr.DataTree:
    path = how.pop("save_to", None)
    tree: xr.DataTree = run(path, num_samples=120, warmup_steps=100, **how)
    return tree


def ranking(**how: Any) -> pd.DataFrame:
    options: dict[str, Any] = {"likelihood": "normal", "localization": 100.0, "step_size": 0.001}
    options |= {"num_chains": 2, "num_samples": 20, "warmup_steps": 12, "thinning": 1}
    data, module = (X, torch.zeros(len(X))), nn.Linear(4, 1, bias=False)
    options |= {"compile": "eager", "progress_bar": False}
    return fe.rank_checkpoints(STATES, module, data, **options, **how)


def selection(**how: Any) -> fe.Selection:
    net, data = means(4)
    found: fe.Selection = select(
        net, data, rule="bayestune", num_chains=2, likelihood=observed_weights, **how
    )
    return found


def tuning(**how: Any) -> fe.FinetuneResult:
    validation = (X[:20] + 0.1, LABELS[:20])
    return tune(num_steps=300, validation=validation, evaluate_every=10, patience=99, **how)


def parallel(**how: Any) -> xr.DataTree:
    return draws(chain_method="parallel", **how)


def same_draws(one: xr.DataTree, other: xr.DataTree) -> None:
    for group in ("posterior", "sample_stats", "moments"):
        first, second = (tree[group].to_dataset().drop_attrs() for tree in (one, other))
        xr.testing.assert_identical(first, second)


def same_rows(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one, other, check_exact=True)


def same_selection(one: fe.Selection, other: fe.Selection) -> None:
    for name in ("score", "scale_sd", "r_hat", "mcse", "mask"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def same_tuning(one: fe.FinetuneResult, other: fe.FinetuneResult) -> None:
    assert torch.equal(one.weights, other.weights)
    pd.testing.assert_frame_equal(one.history, other.history, check_exact=True)


@dataclass(frozen=True)
class Kind:
    """A call that keeps its run, what makes two results one, and how its file is named."""

    call: Callable[..., Any]
    assert_same: Callable[[Any, Any], None]
    file: str


KINDS = {
    "draws": Kind(draws, same_draws, "run.zarr"),
    "chains as tasks": Kind(partial(draws, n_jobs=1), same_draws, "run.zarr"),
    "ranking": Kind(ranking, same_rows, "ranking"),
    "selection": Kind(selection, same_selection, "run"),
    "fine-tuning": Kind(tuning, same_tuning, "run"),
}


def go_on(call: Callable[..., Any], path: Path) -> Any:
    """Repeat a call: with `resume=True`, or from the beginning where nothing was kept."""
    try:
        return call(save_to=path, resume=True)
    except FileNotFoundError:
        assert not path.exists()
        return call(save_to=path)


def has_committed(path: Path) -> bool:
    """Whether a run that is not over has kept something."""
    resume = path.with_name(f"{path.name}.resume")
    return resume.exists() or path.is_file() or (path / "table.json").exists()


def lots_done(path: Path) -> int:
    table = path / "table.json"
    if not table.exists():
        return 0
    held = json.loads(json.loads(table.read_text())["table"])
    return sum(lot["rows"] is not None for lot in held["lots"])


TIMES = [pytest.param(2, marks=pytest.mark.thorough), pytest.param(20, marks=pytest.mark.slow)]
KILLS = [
    *(pytest.param(name, 2, marks=pytest.mark.thorough) for name in ("draws", "fine-tuning")),
    *(pytest.param(name, 20, marks=pytest.mark.slow) for name in KINDS if name != "draws"),
    pytest.param("draws", 100, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "times"), KILLS)
def test_killed_at_random_moments(name: str, times: int, tmp_path: Path) -> None:
    kind, generator = KINDS[name], np.random.default_rng(times)
    whole = kind.call()
    paths = [tmp_path / f"whole {k}" / kind.file for k in range(2)]
    seconds = min(processor_seconds(partial(kind.call, save_to=path)) for path in paths)
    again = between = number = 0
    while between < times:
        number += 1
        assert number < 4 * times
        folder = tmp_path / str(number)
        path = folder / kind.file
        moment = seconds * generator.uniform(0.1, 1)
        early = ended_after(moment, partial(kind.call, save_to=path))
        between += early and has_committed(path)
        seconds *= 1.0 if early else 0.95  # a busy machine has made it seem longer than it is
        if number % 3 == 1:  # and once more while it goes on
            moment = seconds * generator.uniform(0.1, 0.6)
            again += ended_after(moment, partial(go_on, kind.call, path))
        done = lots_done(path) if name == "ranking" else 0
        result, steps = counted(partial(go_on, kind.call, path))
        kind.assert_same(result, whole)
        if name == "ranking":
            assert steps <= (len(STATES) // 4 - done) * STEPS
        assert [file.name for file in folder.iterdir()] == [kind.file]
        assert not [file for file in folder.rglob("*") if "partial" in file.name]
    print(
        f"{name}: of {number} runs {between} ended between their first and last commits, "
        f"{again} once more; {seconds:.1f} s each"
    )


@contextmanager
def full_after(syncs: int) -> Iterator[Callable[[], int]]:
    """The disk is full from here on: what is to be on it is refused, as `fsync` does it."""
    done, own = 0, syncing._sync

    def sync(path: Path) -> None:
        nonlocal done
        done += 1
        if done > syncs:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        own(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(syncing, "_sync", sync)
        yield lambda: done


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("name", KINDS)
def test_a_disk_that_is_full_at_any_commit(name: str, times: int, tmp_path: Path) -> None:
    kind = KINDS[name]
    whole = kind.call()
    with full_after(10**9) as count:
        kind.call(save_to=tmp_path / "whole" / kind.file)
        most = count() // 2  # commits go by the clock: another run may have fewer
    moments = range(0, most, max(1, most // times))
    for syncs in moments:
        folder = tmp_path / str(syncs)
        path = folder / kind.file
        with full_after(syncs), pytest.raises(OSError, match="No space left") as error:
            kind.call(save_to=path)
        assert error.value.errno == errno.ENOSPC
        kind.assert_same(go_on(kind.call, path), whole)
        assert [file.name for file in folder.iterdir()] == [kind.file]
    print(f"{name}: full at {len(moments)} of {2 * most} commits")


def running_in(group: int) -> list[int]:
    """The processes of a group that have not ended."""
    stats = [path / "stat" for path in Path("/proc").iterdir() if path.name.isdigit()]
    found = []
    for stat in stats:
        try:
            state, _, own, *_ = stat.read_text().rpartition(")")[2].split()
            ended = state == "Z" and len(list((stat.parent / "task").iterdir())) == 1
        except OSError:
            continue
        if int(own) == group and not ended:  # its first thread may end before the others
            found.append(int(stat.parent.name))
    return found


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("whom", ["the run", "a chain"])
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_parallel_run_killed_at_random_moments(whom: str, times: int, tmp_path: Path) -> None:
    generator, whole, begun = np.random.default_rng(times), parallel(), time.monotonic()
    parallel(save_to=tmp_path / "whole" / "run.zarr")
    seconds = time.monotonic() - begun
    between = number = 0
    while between < times:
        number += 1
        assert number < 4 * times
        path = tmp_path / str(number) / "run.zarr"
        child = os.fork()
        if child == 0:
            os.setpgrp()
            torch.set_num_threads(1)
            parallel(save_to=path)
            os._exit(0)
        time.sleep(seconds * generator.uniform(0.1, 1))
        had = path.with_name("run.zarr.resume").exists()
        chains = [one for one in running_in(child) if one != child][: 1 + number % 2]
        for process in chains if whom == "a chain" else [child]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        early = bool(chains) if whom == "a chain" else status != 0
        between += early and had
        seconds *= 1.0 if early else 0.95
        assert status == 0 or whom == "the run"
        until = time.monotonic() + 30
        while running_in(child) and time.monotonic() < until:
            time.sleep(0.1)
        assert not running_in(child), "a chain's process outlives the run"
        same_draws(go_on(parallel, path), whole)
        assert [file.name for file in path.parent.iterdir()] == ["run.zarr"]
    print(
        f"parallel, {whom}: of {number} runs {between} were killed between their first and last "
        f"commits; {seconds:.1f} s each"
    )
