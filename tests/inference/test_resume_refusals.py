"""Resuming: what is refused and how, and crashes between two writes or within one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr
from safetensors.torch import load_file, save_file
from small_stored_runs import gaussian, run

import ppl_fe as fe
from ppl_fe.inference import draws as draws_module
from ppl_fe.inference import store as store_module
from ppl_fe.inference.chains import Chains
from ppl_fe.inference.step import Statistics
from ppl_fe.inference.store import Store


class CrashError(BaseException):
    """Stands for a power cut: nothing may catch it."""


@pytest.fixture(autouse=True)
def _blocks_of_four_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws_module, "BLOCK_VALUES", 4 * 2 * 2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.zarr"


@contextmanager
def stopping_after(steps: int) -> Iterator[None]:
    """What Ctrl-C raises comes in place of the next step."""
    advance, taken = Chains.advance, 0

    def interrupted(self: Chains) -> Statistics:
        nonlocal taken
        taken += 1
        if taken > steps:
            raise KeyboardInterrupt
        return advance(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Chains, "advance", interrupted)
        yield


@pytest.fixture
def unfinished(path: Path) -> Path:
    """A run stopped after nine of its twelve draws; the resume file stands at the eighth."""
    with stopping_after(3 + 9), pytest.warns(RuntimeWarning, match="9 of 12 draws"):
        run(path)
    return path


def files(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def assert_goes_on(path: Path) -> None:
    """Resumed, the run is the uninterrupted one, in memory and on disk."""
    whole, resumed = run(None), run(path, resume=True)
    for tree in (resumed, xr.open_datatree(path, engine="zarr").load()):
        assert set(tree.children) == set(whole.children)
        for group in whole.children:
            xr.testing.assert_identical(
                tree[group].to_dataset().drop_attrs(), whole[group].to_dataset().drop_attrs()
            )


SGLD = fe.SGLD(gaussian, step_size=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: run(p, resume=True, seed=1), "{'seed': 0}, not with {'seed': 1}"),
        (lambda p: run(p, resume=True, num_samples=13), "{'num_samples': 12}, not .* 13}"),
        (lambda p: run(p, resume=True, warmup_steps=4), "{'warmup_steps': 3}, not .* 4}"),
        (lambda p: run(p, resume=True, thinning=2), "{'thinning': 1}, not .* 2}"),
        (lambda p: run(p, resume=True, num_chains=3), "{'num_chains': 2}, not .* 3}"),
        (lambda p: run(p, SGLD, 3, resume=True), r"{'x': \[2\]}}, not .*{'x': \[3\]}}"),
        (lambda p: run(p, SGLD, 2, "y", resume=True), r"{'x': \[2\]}}, not .*{'y': \[2\]}}"),
        (lambda p: run(p, fe.SGLD(gaussian, step_size=0.2), resume=True), "0.1}, not .* 0.2}"),
        (lambda p: run(p, fe.PSGLD(gaussian, step_size=0.1), resume=True), "'SGLD'.*'PSGLD'"),
        (lambda p: run(p, resume=True, compile="traced"), "'eager'}, not .*'traced'}"),
        (lambda p: run(p, resume=True, chain_method="sequential"), "'vectorized'.*'sequential'"),
    ],
)
def test_another_call_is_refused_and_the_difference_named(
    change: Callable[[Path], Any], message: str, unfinished: Path
) -> None:
    before = files(unfinished.parent)
    with pytest.raises(ValueError, match=rf"resume=True: .*run\.zarr was begun with.*{message}"):
        change(unfinished)
    assert files(unfinished.parent) == before  # and so it may still be resumed


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def without_facts(file: Path) -> None:
    save_file(load_file(file), file)


@pytest.mark.parametrize(
    "damage",
    [
        cut_short,
        without_facts,
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"\xff" * 4096),
    ],
)
def test_a_damaged_resume_file_is_one_clear_error(
    damage: Callable[[Path], Any], unfinished: Path
) -> None:
    damage(unfinished.with_name("run.zarr.resume"))
    before = files(unfinished.parent)
    with pytest.raises(ValueError, match=r"run\.zarr\.resume is damaged .* begin a new run"):
        run(unfinished, resume=True)
    assert files(unfinished.parent) == before
    assert xr.open_datatree(unfinished, engine="zarr").posterior.sizes["draw"] == 9


def test_a_folder_with_fewer_draws_than_the_resume_file_tells_is_refused(unfinished: Path) -> None:
    Store(unfinished, resume=True).draws(5)  # cuts the folder back
    before = files(unfinished.parent)
    with pytest.raises(ValueError, match=r"holds 5 draws, but run\.zarr\.resume .* draw 8"):
        run(unfinished, resume=True)
    assert files(unfinished.parent) == before


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_crash_between_the_draws_and_the_resume_file(
    number: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember, calls = Store.remember, 0

    def crashing(self: Store, state: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        nonlocal calls
        if calls == number:  # the first call comes before any draw
            raise CrashError
        calls += 1
        remember(self, state, facts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "remember", crashing)
        with pytest.raises(CrashError):
            run(path)
    held = xr.open_datatree(path, engine="zarr", consolidated=False).posterior.sizes["draw"]
    assert held == 4 * number
    assert_goes_on(path)


@pytest.mark.parametrize("number", [0, 1, 3, 7, 8, 12])
def test_a_crash_within_an_append(number: int, path: Path) -> None:
    append, calls = store_module._append, 0

    def crashing(group: Any, arrays: Mapping[str, Any], dimensions: Any = None) -> None:
        nonlocal calls
        for name, values in arrays.items():
            calls += 1
            if calls > number:
                raise CrashError
            append(group, {name: values}, dimensions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "_append", crashing)
        with pytest.raises(CrashError):
            run(path)
    assert_goes_on(path)


def test_the_resume_file_is_written_aside(unfinished: Path) -> None:
    """A crash in the middle of writing leaves the last resume file whole."""

    def crashing(tensors: Any, file: Path, metadata: Any) -> None:
        Path(file).write_bytes(b"half")
        raise CrashError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "save_file", crashing)
        with pytest.raises(CrashError):
            run(unfinished, resume=True)
    assert_goes_on(unfinished)


def test_a_run_that_lost_a_chain_cannot_be_resumed_and_does_not_offer_it(path: Path) -> None:
    start = {"x": torch.tensor([[0.0, 0.0], [torch.inf, 0.0]])}
    with (
        stopping_after(8),
        pytest.warns(RuntimeWarning, match="left out: chain 1"),
        pytest.warns(RuntimeWarning, match="5 of 12 draws were kept$"),
    ):
        part = run(path, initial_params=start)
    assert part.posterior.chain.values.tolist() == [0]
    with pytest.raises(FileNotFoundError, match=r"lost a chain, .* opens its draws$"):
        run(path, resume=True, initial_params=start)


def test_a_crash_while_the_run_is_finished_leaves_it_to_be_gone_on_with(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "abandon", lambda self: (_ for _ in ()).throw(CrashError()))
        with pytest.raises(CrashError):
            run(path)
    assert_goes_on(path)
