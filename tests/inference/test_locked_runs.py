"""Two calls on one `save_to`: one runs, the other is refused at once, and nothing is damaged."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr
from cases.stored_runs import files, run, stopping_after

from ppl_fe.files import lock as lock_module
from ppl_fe.files.lock import Lock
from ppl_fe.inference.record import recorder as draws_module
from ppl_fe.inference.record import zarr_store as store_module
from ppl_fe.inference.step.chains import Chains
from ppl_fe.inference.step.step_function import Statistics

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
BUSY = rf"run\.zarr is being written by process {os.getpid()} on .*, since 2.*; wait for it"


@pytest.fixture(autouse=True)
def _blocks_of_four_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws_module, "BLOCK_VALUES", 4 * 2 * 2)


def in_step(number: int, call: Callable[[], Any], patch: pytest.MonkeyPatch) -> None:
    """Make this call in the place of another process, during a step."""
    advance, steps = Chains.advance, 0

    def advanced(self: Chains) -> Statistics:
        nonlocal steps
        steps += 1
        if steps == number + 1:
            call()
        return advance(self)

    patch.setattr(Chains, "advance", advanced)


def assert_draws(one: xr.DataTree, path: Path) -> None:
    for tree in (one, xr.open_datatree(path, engine="zarr").load()):
        xr.testing.assert_identical(
            tree["posterior"].to_dataset().drop_attrs(),
            run(None)["posterior"].to_dataset().drop_attrs(),
        )
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("step", [0, 3 + 6], ids=["warm-up", "draws"])
def test_a_second_call_is_refused_at_once_and_changes_nothing(step: int, tmp_path: Path) -> None:
    path, took = tmp_path / "run.zarr", 0.0

    def second() -> None:
        nonlocal took
        before, begun = files(tmp_path), time.perf_counter()
        for resume in (False, True):
            with pytest.raises(BlockingIOError, match=BUSY):
                run(path, resume=resume)
        took = time.perf_counter() - begun
        assert files(tmp_path) == before

    with pytest.MonkeyPatch.context() as patch:
        in_step(step, second, patch)
        first = run(path)
    assert 0 < took < 4  # of the two
    assert_draws(first, path)


def test_of_two_that_resume_one_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    with stopping_after(3 + 9), pytest.warns(RuntimeWarning, match="9 of 12 draws"):
        run(path)

    def second() -> None:
        with pytest.raises(BlockingIOError, match=BUSY):
            run(path, resume=True)

    with pytest.MonkeyPatch.context() as patch:
        in_step(2, second, patch)
        resumed = run(path, resume=True)
    assert_draws(resumed, path)


def test_a_run_that_fails_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    with stopping_after(2), pytest.raises(KeyboardInterrupt):
        run(path)
    assert not list(tmp_path.iterdir())
    assert_draws(run(path), path)


@needs_fork
def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    ready, write = os.pipe()
    child = os.fork()
    if child == 0:
        Lock(path)
        os.write(write, b"x")
        time.sleep(60)
        os._exit(1)
    os.read(ready, 1)
    with pytest.raises(BlockingIOError, match=f"being written by process {child} on "):
        Lock(path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for end in (ready, write):
        os.close(end)
    assert (tmp_path / "run.zarr.lock").exists()
    Lock(path).release()
    assert not list(tmp_path.iterdir())


def test_a_file_removed_between_its_opening_and_its_locking_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lock, calls = tmp_path / "run.zarr", lock_module._locked, 0

    def removed_first(file: int) -> bool:
        nonlocal calls
        calls += 1
        if calls == 1:  # as by an owner that lets go
            (tmp_path / "run.zarr.lock").unlink()
        return lock(file)

    monkeypatch.setattr(lock_module, "_locked", removed_first)
    held = Lock(path)
    assert calls == 2
    with pytest.raises(BlockingIOError):
        Lock(path)
    held.release()
    held.release()


def test_where_files_cannot_be_locked_a_warning_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl", reason="Windows has no flock")

    def unsupported(file: int, what: int) -> None:
        raise OSError(next(iter(lock_module.CANNOT_LOCK)), "not here")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.warns(RuntimeWarning, match="cannot lock files .* begin no second run"):
        Lock(tmp_path / "run.zarr").release()


def test_a_folder_that_cannot_be_written_to_costs_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("a text")
    monkeypatch.setattr(Chains, "advance", None)
    with pytest.raises(OSError, match=r"save_to: .*file cannot be written to \("):
        run(tmp_path / "file" / "run.zarr")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_folder_costs_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Chains, "advance", None)
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=r"save_to: .* cannot be written to"):
        run(tmp_path / "run.zarr")


def test_a_complete_run_is_read_without_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.zarr"
    run(path)
    monkeypatch.setattr(store_module, "Lock", None)  # as in an archive
    assert_draws(run(path, resume=True), path)


def test_the_lock_of_a_process_killed_after_its_last_commit_goes_with_the_next_call(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run.zarr"
    run(path)
    left = path.with_name("run.zarr.lock")
    left.write_bytes(lock_module._about_this_process())
    assert_draws(run(path, resume=True), path)
    held = Lock(path)  # of one that is about to end
    run(path, resume=True)
    assert left.exists()
    held.release()


def _contend(path: Path, wait: Callable[[], Any], results: Any, resume: bool) -> None:
    torch.set_num_threads(1)
    wait()
    begun = time.perf_counter()
    try:
        run(path, num_samples=200, resume=resume)
        results.put("ran")
    except BlockingIOError:
        results.put("refused" if time.perf_counter() - begun < 2 else "late")
    except FileExistsError:
        results.put("came after")


def _run_until_the_other_was_refused(path: Path, begun: Any, refused: Any, results: Any) -> None:
    def hold() -> None:
        begun.set()
        refused.wait(60)

    with pytest.MonkeyPatch.context() as patch:
        in_step(1, hold, patch)
        _contend(path, lambda: None, results, False)


def _come_in_its_warm_up(path: Path, begun: Any, refused: Any, results: Any) -> None:
    _contend(path, begun.wait, results, False)
    refused.set()


def in_the_warm_up(path: Path, fork: Any, results: Any) -> list[Any]:
    events = fork.Event(), fork.Event()
    both = (_run_until_the_other_was_refused, _come_in_its_warm_up)
    return [fork.Process(target=own, args=(path, *events, results)) for own in both]


def begun_together(path: Path, fork: Any, results: Any, *, resume: bool = False) -> list[Any]:
    given = (path, fork.Barrier(2).wait, results, resume)
    return [fork.Process(target=_contend, args=given) for _ in range(2)]


def both_resuming(path: Path, fork: Any, results: Any) -> list[Any]:
    with stopping_after(3 + 90), pytest.warns(RuntimeWarning, match="90 of 200 draws"):
        run(path, num_samples=200)
    return begun_together(path, fork, results, resume=True)


@needs_fork
@pytest.mark.parametrize(
    "times", [pytest.param(2, marks=pytest.mark.thorough), pytest.param(20, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "begin",
    [
        begun_together,
        *(pytest.param(begin, marks=pytest.mark.slow) for begin in (in_the_warm_up, both_resuming)),
    ],
)
def test_of_two_processes_one_runs(begin: Callable[..., Any], times: int, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    whole, count = run(None, num_samples=200), dict[str, int]()
    for number in range(times):
        path, results = tmp_path / str(number) / "run.zarr", fork.Queue()
        both = begin(path, fork, results)
        for process in both:
            process.start()
        outcomes = sorted(results.get(timeout=60) for _ in both)
        for process in both:
            process.join()
        told = " and ".join(outcomes)
        # One of two that resume may come when the other is done, and reads what is complete.
        read = begin is both_resuming and told == "ran and ran"
        assert read or told in ("came after and ran", "ran and refused")
        count[told] = count.get(told, 0) + 1
        stored = xr.open_datatree(path, engine="zarr").load()
        xr.testing.assert_identical(
            stored["posterior"].to_dataset().drop_attrs(),
            whole["posterior"].to_dataset().drop_attrs(),
        )
        assert list(path.parent.iterdir()) == [path]
    print(f"{begin.__name__}: {count}")
    if begin is in_the_warm_up:
        assert count == {"ran and refused": times}
