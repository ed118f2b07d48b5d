"""A ranking as tasks of executors: the table is that of this process, bit for bit."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from cases.lines import (
    GAMMA,
    OFF,
    Deadly,
    Line,
    N,
    X,
    Y,
    anchor,
    assert_same,
    rank,
    states,
)
from exact import linear_gaussian_posterior, z_score

from ppl_fe.free_energy import lot_work


def race(**options: Any) -> pd.DataFrame:
    lengths = dict.fromkeys(("num_samples", "warmup_steps", "thinning"))
    return rank(**{**lengths, "num_chains": 4, **options})


@contextmanager
def forked(count: int = 2) -> Iterator[Executor]:
    with ProcessPoolExecutor(count, multiprocessing.get_context("fork")) as pool:
        yield pool


@pytest.fixture(scope="module")
def alone() -> pd.DataFrame:
    return rank()


def test_tasks_give_the_table_of_this_process() -> None:
    two = dict(list(states().items())[1:3])
    alone = rank(two)
    assert alone["error"].tolist() == ["", ""]
    with ThreadPoolExecutor(2) as pool:
        assert_same(rank(two, executor=pool), alone)


@pytest.mark.thorough
def test_processes_give_the_table_of_this_process(alone: pd.DataFrame, tmp_path: Path) -> None:
    paths = {}
    for name, state in states().items():
        paths[name] = tmp_path / f"{name}.pt"
        torch.save(state, paths[name])
    with forked() as pool:
        assert_same(rank(paths, executor=pool), alone)


@pytest.mark.slow
def test_a_race_is_the_same_race_and_right() -> None:
    alone = race()
    assert alone.attrs["order"]["rounds"] > 0
    with forked() as pool:
        table = race(executor=pool)
    assert_same(table, alone)
    for name, row in table.iterrows():
        beta = 1 / math.log(N)
        exact = linear_gaussian_posterior(X, Y, anchor(OFF[str(name)]), gamma=GAMMA, beta=beta).wbic
        assert abs(z_score(row["wbic"], float(exact), row["wbic_mcse"])) < 4.5


@pytest.mark.thorough  # its processes import torch anew
def test_n_jobs_gives_the_same_table_and_a_death_is_said(
    alone: pd.DataFrame, tmp_path: Path
) -> None:
    assert_same(rank(n_jobs=2), alone)
    table = rank(module=Deadly(tmp_path), n_jobs=2)
    assert (tmp_path / "died").exists()
    assert "took 2 tries; the first ended by TerminatedWorkerError" in table["note"]["far"]
    assert table["error"].tolist() == [""] * 4
    pd.testing.assert_series_equal(table["wbic"], alone["wbic"], check_exact=True)
    table = rank(module=Deadly(None), n_jobs=2)
    assert "its worker died, the second time with no other task beside it" in table["error"]["far"]
    others = alone.index.drop("far")
    pd.testing.assert_series_equal(table["wbic"][others], alone["wbic"][others], check_exact=True)


@pytest.mark.thorough
def test_a_pool_that_broke_leaves_rows_that_say_so() -> None:
    with forked(1) as pool:
        table = rank(module=Deadly(None), executor=pool)
    assert "such a pool takes no more tasks" in table["error"]["far"]
    assert len(table) == len(OFF)


@pytest.mark.thorough
def test_a_task_that_fails_once_is_tried_again_and_that_is_said(
    alone: pd.DataFrame,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times, losses = [0], lot_work._held_out_losses

    def failing(given: Any, own: Any) -> dict[str, float]:
        times[0] += "near" in given.networks
        if times[0] == 1 and "near" in given.networks:
            raise RuntimeError("no room")
        return losses(given, own)

    monkeypatch.setattr(lot_work, "_held_out_losses", failing)
    with ThreadPoolExecutor(2) as pool:
        table = rank(executor=pool)
    said = "took 2 tries; the first ended by RuntimeError: no room"
    assert said in table["note"]["near"]
    pd.testing.assert_series_equal(table["wbic"], alone["wbic"], check_exact=True)


@pytest.mark.thorough
def test_lots_that_fail_are_divided_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = lot_work._held_out_losses

    def failing(given: Any, own: Any) -> dict[str, float]:
        if "near" in given.networks:
            raise ValueError("near has none")
        return losses(given, own)

    monkeypatch.setattr(lot_work, "_held_out_losses", failing)
    alone = rank(states(together=True))
    assert alone["error"]["near"] == "near has none"
    assert alone["wbic"].notna().sum() == 3
    with ThreadPoolExecutor(2) as pool:
        assert_same(rank(states(together=True), executor=pool), alone)


@pytest.mark.thorough
def test_rows_are_kept_as_they_come_and_gone_on_with(alone: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    with forked() as pool:
        first = rank(dict(list(states().items())[:2]), executor=pool, save_to=path)
        table = rank(executor=pool, save_to=path, resume=True)
    assert_same(table, alone)
    assert first["wbic"]["best"] == table["wbic"]["best"]
    assert sorted(file.name for file in path.iterdir()) == [
        "0.zarr", "1.zarr", "2.zarr", "3.zarr", "table.json",
    ]  # fmt: skip
    assert_same(rank(save_to=path, resume=True), alone)


@pytest.mark.thorough
def test_ctrl_c_says_what_is_kept(
    alone: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, losses = tmp_path / "kept", lot_work._held_out_losses

    def stopping(given: Any, own: Any) -> dict[str, float]:
        if "far" in given.networks:
            raise KeyboardInterrupt
        return losses(given, own)

    with monkeypatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr(lot_work, "_held_out_losses", stopping)
        with pytest.raises(KeyboardInterrupt, match=r"after 2 of 4 .*resume=True goes on"):
            rank(executor=pool, save_to=path)
    assert_same(rank(save_to=path, resume=True), alone)


class Connection:
    """What belongs to this process."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Connection:
        return self

    def __reduce__(self) -> Any:
        raise TypeError("a connection")


def test_what_cannot_be_sent_is_refused_before_any_file_is_read() -> None:
    module: Any = Line()
    module.connection = Connection()
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(TypeError, match=r"module cannot be pickled \(TypeError: a conn"):
            rank(["nowhere.pt"], module, executor=pool)
        with pytest.raises(ValueError, match="executor and n_jobs are both given"):
            rank(["nowhere.pt"], executor=pool, n_jobs=2)
