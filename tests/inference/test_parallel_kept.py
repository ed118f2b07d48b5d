"""Chains of a process each that are kept as they come, and gone on with."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr
from cases.stored_runs import counted, run, stopping_after

from ppl_fe.files import state_file
from ppl_fe.files.lock import Lock
from ppl_fe.inference.record import recorder as draws_module
from ppl_fe.inference.step.chains import Chains
from ppl_fe.inference.step.step_function import Statistics

WARM_UP, DRAWS = 3, 12  # steps of a chain
STARTS = {"x": torch.tensor([[0.5, 1.0], [-1.0, 0.0]])}

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(autouse=True)
def _commits_after_each_four_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws_module, "BLOCK_VALUES", 4 * 2)
    monkeypatch.setattr(state_file, "COMMIT_SHARE", 1e9)


def parallel(path: Path | None, **changed: Any) -> xr.DataTree:
    how: dict[str, Any] = {"chain_method": "parallel", "initial_params": STARTS, **changed}
    tree: xr.DataTree = run(path, **how)
    return tree


def one_by_one(path: Path | None, **changed: Any) -> xr.DataTree:
    """The same chains as tasks in this process, where steps are counted."""
    return parallel(path, n_jobs=1, chain_method="vectorized", **changed)


def assert_whole(path: Path, *trees: xr.DataTree) -> None:
    whole = one_by_one(None)
    for tree in (*trees, xr.open_datatree(path, engine="zarr").load()):
        for group in whole.children:
            xr.testing.assert_identical(
                tree[group].to_dataset().drop_attrs(), whole[group].to_dataset().drop_attrs()
            )
    assert list(path.parent.iterdir()) == [path]
    assert not (path / "chains").exists()


@contextmanager
def stopped_in_the_second_chain(path: Path, draws: int) -> Iterator[None]:
    """Ctrl-C after so many of its draws."""
    steps = 2 * WARM_UP + DRAWS + draws
    with (
        stopping_after(steps),
        pytest.warns(RuntimeWarning, match=f"interrupted: {draws} of 12 draws"),
        pytest.raises(KeyboardInterrupt, match=r"keeps what each chain committed: the same call"),
    ):
        one_by_one(path)
    yield


def test_chains_go_on_from_their_last_commits_and_what_is_done_is_not_done_again(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run.zarr"
    with stopped_in_the_second_chain(path, draws=9):
        assert sorted(file.name for file in tmp_path.iterdir()) == ["run.zarr", "run.zarr.resume"]
    resumed, steps = counted(lambda: one_by_one(path, resume=True))
    assert steps == DRAWS - 8
    again, steps = counted(lambda: one_by_one(path, resume=True))  # read
    assert steps == 0
    assert_whole(path, resumed, again)


@needs_fork
def test_a_chain_whose_process_dies_goes_on_from_its_last_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, note, first = tmp_path / "kept" / "run.zarr", tmp_path / "steps", os.getpid()
    advance = Chains.advance

    def noting(chains: Chains) -> Statistics:
        if os.getpid() != first:
            with note.open("a") as file:
                file.write("x")
            if note.stat().st_size == WARM_UP + 9:
                os.kill(os.getpid(), signal.SIGKILL)
        return advance(chains)

    monkeypatch.setattr(Chains, "advance", noting)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # chain after chain
    found = parallel(path)
    assert note.stat().st_size == 2 * (WARM_UP + DRAWS) + 1  # the step that did not come
    assert_whole(path, found)


def test_another_call_is_refused_as_of_chains_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    with stopped_in_the_second_chain(path, draws=1):
        pass
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    for changed, message in (
        ({"seed": 8}, r"run\.zarr was begun with {'seed': 0}, not with {'seed': 8}; repeat"),
        ({"num_chains": 3, "initial_params": None}, r"with {'num_chains': 2}, not with"),
        ({"initial_params": {"x": STARTS["x"] + 1}}, r"with other data \(initial_params\)"),
    ):
        with pytest.raises(ValueError, match=message):
            parallel(path, resume=True, **changed)
    with pytest.raises(ValueError, match=r"'chain_method': 'parallel'.*, not with"):
        parallel(path, resume=True, chain_method="vectorized")
    with pytest.raises(FileExistsError, match="already holds another run"):
        parallel(path)
    with pytest.raises(FileNotFoundError, match="there is no run"):
        parallel(tmp_path / "other.zarr", resume=True)
    held = Lock(path)
    with pytest.raises(BlockingIOError, match=rf"is being written by process {os.getpid()} on "):
        parallel(path, resume=True)
    held.release()
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    held = Lock(path / "chains" / "1")  # of a task that was sent out before
    with pytest.raises(BlockingIOError, match=r"chains/1 is being written by process"):
        one_by_one(path, resume=True)
    held.release()


def test_a_run_whose_chains_all_diverge_leaves_nothing(tmp_path: Path) -> None:
    starts = {"x": torch.full((2, 2), torch.inf)}
    with pytest.raises(FloatingPointError, match="every chain became non-finite"):
        one_by_one(tmp_path / "run.zarr", initial_params=starts)
    assert not list(tmp_path.iterdir())


@pytest.mark.thorough
def test_a_chain_that_diverged_is_left_out_of_a_resumed_run_too(tmp_path: Path) -> None:
    path, starts = tmp_path / "run.zarr", {"x": STARTS["x"].clone()}
    starts["x"][0] = torch.inf
    with pytest.warns(RuntimeWarning, match="left out: chain 0"):
        whole = one_by_one(None, initial_params=starts)
    with (
        stopping_after(1 + WARM_UP + 9),
        pytest.warns(RuntimeWarning, match="interrupted"),
        pytest.raises(KeyboardInterrupt),
    ):
        one_by_one(path, initial_params=starts)
    with pytest.warns(RuntimeWarning, match="left out: chain 0"):
        resumed = one_by_one(path, initial_params=starts, resume=True)
    assert resumed.posterior.chain.values.tolist() == [1]
    xr.testing.assert_identical(
        resumed["posterior"].to_dataset().drop_attrs(), whole["posterior"].to_dataset().drop_attrs()
    )
    assert list(tmp_path.iterdir()) == [path]


@needs_fork
@pytest.mark.thorough
def test_ctrl_c_ends_the_processes_and_says_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, told, first = tmp_path / "kept" / "run.zarr", tmp_path / "told", os.getpid()
    advance, steps = Chains.advance, 0

    def slow(chains: Chains) -> Statistics:
        nonlocal steps
        steps += 1
        if steps > WARM_UP + 6:
            (tmp_path / f"{os.getpid()}").touch()
            time.sleep(60)
        return advance(chains)

    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        monkeypatch.setattr(Chains, "advance", slow)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            parallel(path)
        except KeyboardInterrupt as error:
            told.write_text(str(error))
        os._exit(0)
    until = time.monotonic() + 60
    while not [one for one in tmp_path.iterdir() if one.name.isdigit()]:
        assert time.monotonic() < until
        time.sleep(0.05)
    os.kill(child, signal.SIGINT)
    begun = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert time.monotonic() - begun < 20  # no one has waited for the minute
    assert "keeps what each chain committed" in told.read_text()
    assert os.getpid() == first
    assert_whole(path, parallel(path, resume=True))
