"""kill -9 at any file operation of a run: what was committed is kept, and it is gone on with."""

from __future__ import annotations

import os
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr
from cases.killed import killed_at
from cases.stored_runs import run

from ppl_fe.files import syncing
from ppl_fe.inference.record import recorder as draws_module

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

LOST = {"initial_params": {"x": torch.tensor([[0.0, 0.0], [torch.inf, 0.0]])}}  # a chain
KINDS: dict[str, dict[str, Any]] = {"whole": {}, "a chain lost": LOST}


def quietly(path: Path | None, **changed: Any) -> xr.DataTree:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree: xr.DataTree = run(path, **changed)
    return tree


@pytest.fixture(autouse=True)
def _blocks_of_four_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws_module, "BLOCK_VALUES", 4 * 2 * 2)


@cache
def whole_of(kind: str) -> xr.DataTree:
    return quietly(None, **KINDS[kind])


def go_on(path: Path, kind: str) -> xr.DataTree:
    """Repeat the call: with `resume=True`, or from the beginning where nothing was kept."""
    try:
        return quietly(path, resume=True, **KINDS[kind])
    except FileNotFoundError:
        assert not path.exists()
        return quietly(path, **KINDS[kind])


def assert_whole(path: Path, kind: str, resumed: xr.DataTree) -> None:
    whole = whole_of(kind)
    for tree in (resumed, xr.open_datatree(path, engine="zarr").load()):
        for group in whole.children:
            xr.testing.assert_identical(
                tree[group].to_dataset().drop_attrs(), whole[group].to_dataset().drop_attrs()
            )
    left = [file.name for file in path.parent.rglob("*") if "partial" in file.name]
    assert [file.name for file in path.parent.iterdir()] == ["run.zarr"]
    assert not left


def kill_and_go_on(kind: str, operation: int, folder: Path) -> bool:
    """Kill a run, go on with it and look; False if the run has fewer operations."""
    folder.mkdir()
    path = folder / "run.zarr"
    if not killed_at(operation, folder, lambda: quietly(path, **KINDS[kind])):
        return False
    assert_whole(path, kind, go_on(path, kind))
    return True


def test_killed_at_a_few_operations(tmp_path: Path) -> None:
    for operation in (1, 40, 90):
        assert kill_and_go_on("whole", operation, tmp_path / str(operation))


@pytest.mark.parametrize(
    "apart", [pytest.param(50, marks=pytest.mark.thorough), pytest.param(1, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("kind", ["whole", pytest.param("a chain lost", marks=pytest.mark.slow)])
def test_killed_at_operations_one_after_another(kind: str, apart: int, tmp_path: Path) -> None:
    operation = 0
    while kill_and_go_on(kind, operation, tmp_path / str(operation)):
        operation += apart
    assert operation > 100


def killed_twice(kind: str, first: int, second: int, folder: Path) -> bool:
    folder.mkdir()
    path = folder / "run.zarr"
    assert killed_at(first, folder, lambda: quietly(path, **KINDS[kind]))
    if not killed_at(second, folder, lambda: go_on(path, kind)):
        return False
    assert_whole(path, kind, go_on(path, kind))
    return True


def test_killed_again_while_it_is_resumed(tmp_path: Path) -> None:
    assert killed_twice("whole", 100, 12, tmp_path / "twice")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [10, 70, 110, 150])
def test_killed_at_each_operation_of_a_resumed_run(kind: str, first: int, tmp_path: Path) -> None:
    second = 0
    while killed_twice(kind, first, second, tmp_path / str(second)):
        second += 3
    assert second


def test_what_a_commit_counts_on_is_on_the_disk_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, on_disk, replace, commits = tmp_path / "run.zarr", dict[Path, float](), os.replace, 0

    def state(file: Path) -> float:
        return file.stat().st_mtime_ns

    def replaced(source: Path, target: Path) -> None:
        nonlocal commits
        if Path(target).name == "run.zarr.resume":
            commits += 1
            for file in (Path(source), *path.rglob("*")):
                assert on_disk.get(file) == state(file), f"{file} was not synced"
        replace(source, target)
        if Path(source) in on_disk:
            on_disk[Path(target)] = on_disk.pop(Path(source))

    def sync(file: Path) -> None:
        if file.exists():
            on_disk[file] = state(file)

    monkeypatch.setattr(syncing, "_sync", sync)
    monkeypatch.setattr(os, "replace", replaced)
    run(path)
    assert commits == 4  # before the first draw, and after each four
    assert all(on_disk.get(file) == state(file) for file in path.rglob("*"))
