"""Checkpoints that cannot be read or sampled keep their rows; arguments at odds are refused."""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_rankings import SHORT, Cliff, N, linear_state, rank_lines

import ppl_fe as fe
from ppl_fe.free_energy import ranking


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_a_bad_checkpoint_keeps_its_row(tmp_path: Path) -> None:
    save_file(linear_state(0.0), tmp_path / "good.safetensors")
    whole = (tmp_path / "good.safetensors").read_bytes()
    (tmp_path / "truncated.safetensors").write_bytes(whole[:-5])
    (tmp_path / "malicious.pt").write_bytes(pickle.dumps(Payload(tmp_path / "ran"), protocol=2))
    torch.save(linear_state(1.0), tmp_path / "other.pt")
    states: dict[str, Any] = {
        "missing": tmp_path / "nowhere.pt",
        "truncated": tmp_path / "truncated.safetensors",
        "good": tmp_path / "good.safetensors",
        "malicious": tmp_path / "malicious.pt",
        "misshaped": {"weight": torch.zeros(1, 4)},
        "other names": {"bias": torch.zeros(1)},
        "nan": linear_state(math.nan),
        "other": str(tmp_path / "other.pt"),
    }
    table = rank_lines(states, localization=50.0)
    assert set(table.index) == set(states)
    assert list(table.index[:2]) == ["good", "other"]
    assert table["p_best"][:2].sum() == pytest.approx(1.0)
    lost = table.iloc[2:]
    assert lost[["wbic", "p_best"]].isna().all(axis=None)
    for name, said in {
        "missing": "no checkpoint at",
        "truncated": "damaged or truncated",
        "malicious": "would run code",
        "misshaped": "(1, 4)",
        "other names": "missing",
        "nan": "NaN",
    }.items():
        assert said in str(table["error"][name]), name
    assert (table["error"][:2] == "").all()
    assert not (tmp_path / "ran").exists()


def test_nothing_but_bad_checkpoints() -> None:
    table = rank_lines({"a": linear_state(math.nan), "b": {}})
    assert list(table["error"] != "") == [True, True]


def test_a_checkpoint_whose_chains_all_fail_keeps_its_row() -> None:
    states = {name: {"w": torch.tensor([at])} for name, at in {"far": 4.99, "near": 0.0}.items()}
    with pytest.warns(RuntimeWarning, match="left out"):
        table = fe.rank_checkpoints(
            states,
            Cliff(5.0),
            (torch.full((N, 1), 1e-3), torch.zeros(N)),
            likelihood="normal",
            kernel=fe.SGLD,
            step_size=0.5,
            **{**SHORT, "warmup_steps": 100},
        )
    assert list(table.index) == ["near", "far"]
    assert "all 4 chains became non-finite" in table["error"]["far"]
    assert table["error"]["near"] == ""
    assert table["p_best"]["near"] == 1.0


def test_baselines_that_cannot_be_had_are_refused_before_the_chains_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ranking, "sample_local_posteriors", None)
    with pytest.raises(ValueError, match="no linear submodule"):
        rank_lines({"a": linear_state(0.0)}, baseline_columns=True)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="checkpoints is empty"):
        rank_lines({})
    for name, value in {"num_chains": 0, "localization": -1.0}.items():
        with pytest.raises(ValueError, match=name):
            rank_lines({"a": linear_state(0.0)}, **{name: value})
