"""A ranking that is kept: rows as they come, gone on with after any end, also with more of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from cases.killed import killed_at
from cases.stored_runs import counted, crashing_after, stopping_after
from torch import Tensor, nn

import ppl_fe as fe
from ppl_fe.free_energy import lots
from ppl_fe.free_energy.kept_ranking import KeptRanking

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
Y = torch.zeros(40)
WARMUP, SAMPLES = 4, 8
STEPS = WARMUP + SAMPLES  # of a lot
STATES = {f"w={w}": {"weight": torch.full((1, 3), w)} for w in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)}


@pytest.fixture(autouse=True)
def _two_checkpoints_a_lot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lots, "MOST_CHAINS", 4)


def rank(states: dict[str, dict[str, Tensor]] = STATES, **more: Any) -> pd.DataFrame:
    given: dict[str, Any] = {
        "likelihood": "normal",
        "localization": 100.0,
        "step_size": 0.001,
        "num_chains": 2,
        "num_samples": SAMPLES,
        "warmup_steps": WARMUP,
        "thinning": 1,
        "progress_bar": False,
        "compile": "eager",
    }
    data = more.pop("data", (X, Y))
    return fe.rank_checkpoints(states, nn.Linear(3, 1, bias=False), data, **{**given, **more})


def assert_same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_a_crash_costs_no_row_and_no_commit(tmp_path: Path) -> None:
    path, whole = tmp_path / "draws", rank()
    with crashing_after(2 * STEPS + 3):  # in the warm-up of the third lot
        rank(save_to=path)
    table, steps = counted(lambda: rank(save_to=path, resume=True))
    assert steps == STEPS
    assert_same(table, whole)
    again, steps = counted(lambda: rank(save_to=path, resume=True))
    assert steps == 0
    assert_same(again, whole)
    names = sorted(file.name for file in path.iterdir())
    assert names == ["0.zarr", "1.zarr", "2.zarr", "table.json"]
    assert [file.name for file in tmp_path.iterdir()] == ["draws"]


def test_ctrl_c_says_how_far_it_came(tmp_path: Path) -> None:
    path = tmp_path / "draws"
    with (
        stopping_after(STEPS + WARMUP + 5),
        pytest.warns(RuntimeWarning, match="5 of 8 draws"),
        pytest.raises(KeyboardInterrupt, match=r"after 2 of 6 checkpoints.*resume=True goes on"),
    ):
        rank(save_to=path)
    assert_same(rank(save_to=path, resume=True), rank())


def test_more_checkpoints_than_before_and_others(tmp_path: Path) -> None:
    path = tmp_path / "draws"
    first = rank(dict(list(STATES.items())[:4]), save_to=path)
    table, steps = counted(lambda: rank(save_to=path, resume=True))
    assert steps == STEPS
    for name in first.index:
        assert table["wbic"][name] == first["wbic"][name]
    assert_same(table, rank())
    changed = {**STATES, "w=0.3": {"weight": torch.full((1, 3), 0.35)}}
    del changed["w=0.1"]
    other, steps = counted(lambda: rank(changed, save_to=path, resume=True))
    assert steps == STEPS
    assert set(other.index) == set(changed)
    assert other["anchor_loss"]["w=0.3"] > table["anchor_loss"]["w=0.3"]
    assert other["wbic"]["w=0.2"] == table["wbic"]["w=0.2"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"localization": 50.0}, r"{'localization': 100.0}, not with {'localization': 50.0}"),
        ({"data": (X, Y + 1)}, r"with other data \(data targets\)"),
        ({"likelihood": "categorical"}, r"'normal'.*'categorical'"),
    ],
)
def test_another_ranking_is_refused(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "draws"
    two = dict(list(STATES.items())[:2])
    rank(two, save_to=path)
    with pytest.raises(ValueError, match=rf"resume=True: .*draws was begun .*{message}"):
        rank(two, save_to=path, resume=True, **changed)


def test_what_cannot_be_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "draws"
    with pytest.raises(ValueError, match="resume=True goes on with the ranking at save_to"):
        rank(resume=True)
    with pytest.raises(FileNotFoundError, match=r"there is no ranking in .*leave resume out"):
        rank(save_to=path, resume=True)
    held = KeptRanking(path)
    with pytest.raises(BlockingIOError, match="is being written by process"):
        rank(save_to=path)
    held.close()
    rank(dict(list(STATES.items())[:1]), save_to=path)
    with pytest.raises(FileExistsError, match=r"save_to: .*already exists"):
        rank(save_to=path)
    text = (path / "table.json").read_text()
    (path / "table.json").write_text(text.replace("wbic", "wbik", 1))
    with pytest.raises(ValueError, match=r"table\.json is damaged .*begin a new ranking"):
        rank(save_to=path, resume=True)


@pytest.mark.slow
def test_killed_at_any_operation(tmp_path: Path) -> None:
    whole, operation = rank(), 0
    while True:
        folder = tmp_path / str(operation)
        folder.mkdir()
        path = folder / "draws"
        if not killed_at(operation, folder, lambda at=path: rank(save_to=at)):  # type: ignore[misc]
            break
        begun = (path / "table.json").exists()
        assert_same(rank(save_to=path, resume=begun), whole)
        operation += 7
    assert operation > 200
