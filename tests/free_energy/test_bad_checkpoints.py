"""No row of a ranking is ever lost: what one checkpoint raises is the error of its row."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cases.bad_checkpoints import BAD, DOUBTFUL, EDGE, Steep, changed, state
from cases.rankings import QUICKEST, N, X, linear_state, rank_lines
from torch import Tensor, nn

import ppl_fe as fe
from ppl_fe.free_energy import lot_work, ranking
from ppl_fe.free_energy.baselines.columns import baseline_columns
from ppl_fe.free_energy.candidates import named_checkpoints
from ppl_fe.free_energy.local_chains import LocalChains, sample_local_posteriors

TARGETS = torch.zeros(N)
QUICK: dict[str, Any] = {
    **QUICKEST,
    "likelihood": "normal",
    "batch_size": None,
    "localization": 50.0,
}


def rank(checkpoints: Any, **options: Any) -> pd.DataFrame:
    return fe.rank_checkpoints(checkpoints, Steep(), (X, TARGETS), **{**QUICK, **options})


def refuse_lots(monkeypatch: pytest.MonkeyPatch, bias: float, most: int = 99) -> list[int]:
    """Let lots fail that hold this bias, or more checkpoints than `most`; list all lots' sizes."""
    sizes: list[int] = []

    def limited(network: fe.FlatNetwork, anchors: Tensor, *rest: Any, **more: Any) -> LocalChains:
        sizes.append(len(anchors))
        if len(anchors) > most or (anchors[:, -1] == bias).any():
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB\nat line 3")
        return sample_local_posteriors(network, anchors, *rest, **more)

    monkeypatch.setattr(lot_work, "sample_local_posteriors", limited)
    return sizes


def test_every_way_to_fail_is_a_row(tmp_path: Path) -> None:
    states = {name: make(tmp_path / name) for name, make in BAD.items()} | {"good": state(1)}
    table = rank(states)
    assert set(table.index) == set(states)
    assert table.index[0] == "good"
    assert table["error"]["good"] == ""
    alone = rank({"good": state(1)})
    assert table["wbic"]["good"] == pytest.approx(alone["wbic"]["good"], rel=1e-6)
    lost = table.drop(index="good")
    assert (lost["error"] != "").all()
    assert lost[["wbic", "llc", "p_best"]].isna().all(axis=None)
    for name, said in {
        "out of memory": "RuntimeError: CUDA out of memory. Tried to allocate",
        "MemoryError": "MemoryError",
        "vanished": "No such file or directory",
        "a module": "got Steep; give module.state_dict()",
        "None": "must be a file, a folder or a state dict, got NoneType",
        "sparse": "line.weight is sparse_coo",
        "meta": "line.weight is meta",
        "weights of 1e30": "L(w*) is inf over the first 80 rows",
        "weights of 1e30 in a lot of its own": "L(w*) is inf over the first 80 rows",
        "beyond the edge": "L(w*) is nan over the first 80 rows",
    }.items():
        assert said in table["error"][name], name


def test_a_loss_that_is_not_finite_is_an_error_of_its_estimate_too() -> None:
    module = Steep()
    module.load_state_dict(changed(line_weight=torch.full((1, 3), 1e30)))
    with pytest.raises(fe.DivergedError, match=r"^L\(w\*\) is inf: the network's outputs at w\*"):
        fe.estimate_free_energy(fe.FlatNetwork(module), (X, TARGETS), **QUICK)


@pytest.mark.thorough
def test_rows_beyond_the_first_are_seen_too() -> None:
    inputs = torch.cat([X, X, X, X])
    inputs[:, 2] = 0.0
    inputs[-1, 2] = (
        1.0  # beyond the rows that are tried first, and a's output overflows there alone
    )
    steep = changed(line_weight=torch.tensor([[0.0, 0.0, 1e30]]))
    table = fe.rank_checkpoints(
        {"a": steep, "b": state(0)}, Steep(), (inputs, torch.zeros(len(inputs))), **QUICK
    )
    assert list(table.index) == ["b", "a"]
    assert "L(w*) is inf: " in table["error"]["a"]
    assert table["error"]["b"] == ""


def test_a_lot_that_fails_is_divided_until_what_fails_stands_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sizes = refuse_lots(monkeypatch, bias=0.125)
    states = {name: state(seed) for seed, name in enumerate("abcd")}
    states["bad"] = changed(line_bias=torch.tensor([0.125]))
    table = rank(states, save_to=tmp_path / "draws")
    assert sizes == [5, 2, 3, 1, 2, 1, 1]
    assert table["error"]["bad"] == "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB"
    assert (table["error"].drop("bad") == "").all()
    assert table["wbic"].drop("bad").notna().all()
    assert sorted(path.name for path in (tmp_path / "draws").iterdir()) == [
        "1.zarr", "3.zarr", "5.zarr", "table.json"
    ]  # fmt: skip


@pytest.mark.thorough
def test_lots_too_large_for_memory_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = refuse_lots(monkeypatch, bias=0.125, most=2)
    table = rank({name: state(seed) for seed, name in enumerate("abcd")})
    assert sizes == [4, 2, 2]
    assert (table["error"] == "").all()


def test_what_no_checkpoint_can_do_is_a_fault_of_the_call() -> None:
    with pytest.raises(ValueError, match="the network fails on inputs of shape"):
        fe.rank_checkpoints({"a": state(0)}, Steep(), (X[:, :2], TARGETS), **QUICK)
    with pytest.raises(ValueError, match=r"^held_out: the network fails"):
        rank({"a": state(0), "b": None}, held_out=(X[:, :2], TARGETS))
    with pytest.raises(ValueError, match="compile must be one of"):
        rank({"a": state(0)}, compile="fast")
    # The module's own weights do not matter, though these give no finite loss.
    module = Steep()
    nn.init.constant_(module.line.bias, EDGE + 1)
    table = fe.rank_checkpoints({"a": None, "b": {}}, module, (X, TARGETS), **QUICK)
    assert (table["error"] != "").all()


def test_baselines_that_one_checkpoint_cannot_have_are_a_note(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def one_fails(network: fe.FlatNetwork, *rest: Any) -> dict[str, float]:
        if network.anchor[-1] == 0.125:
            raise RuntimeError("CUDA out of memory")
        return baseline_columns(network, *rest)

    monkeypatch.setattr(ranking, "baseline_columns", one_fails)
    states = {"a": state(0), "b": changed(line_bias=torch.tensor([0.125]))}
    table = rank(states, baselines=True)
    assert table["note"]["b"].startswith("no baselines: RuntimeError: CUDA out of memory")
    assert table["geometric_complexity"].isna().to_dict() == {"a": False, "b": True}
    assert table["wbic"].notna().all()


def test_a_plain_list_is_named_by_its_paths(tmp_path: Path) -> None:
    torch.save(linear_state(0.0), tmp_path / "a.pt")
    torch.save(linear_state(2.0), tmp_path / "b.pt")
    paths: list[Any] = [tmp_path / "b.pt", str(tmp_path / "a.pt")]
    table = rank_lines([*paths, linear_state(1.0)], localization=50.0)
    assert list(table.index) == [str(tmp_path / "a.pt"), "checkpoint 2", str(tmp_path / "b.pt")]
    assert list(named_checkpoints(path for path in paths)) == [str(path) for path in paths]
    with pytest.raises(ValueError, match=r"holds '.*b\.pt' twice"):
        rank_lines([*paths, str(paths[0])])
    with pytest.raises(TypeError, match=r"checkpoints must be several, got the path 'a\.pt'"):
        rank_lines("a.pt")
    with pytest.raises(TypeError, match="checkpoints is a single state dict"):
        rank_lines(linear_state(0.0))
    with pytest.raises(TypeError, match=r"must be a mapping or a list .* got Linear"):
        rank_lines(nn.Linear(3, 1))
    with pytest.raises(ValueError, match="checkpoints is empty"):
        rank_lines([])


@pytest.mark.parametrize(
    "rankings",
    [pytest.param(5, marks=pytest.mark.thorough), pytest.param(200, marks=pytest.mark.slow)],
)
def test_rankings_of_good_and_bad_keep_their_five_rows(rankings: int, tmp_path: Path) -> None:
    drawn = set()
    for seed in range(rankings):
        rng = np.random.default_rng(seed)
        kinds = {**BAD, **DOUBTFUL}
        bad = rng.choice(list(kinds), size=rng.integers(1, 5), replace=False).tolist()
        places = rng.permutation(5)
        names = dict(zip(places.tolist(), [*bad, *["good"] * 5][:5], strict=True))
        (tmp_path / str(seed)).mkdir()
        checkpoints = {
            f"{place}: {name}": state(seed + place, mean=float(place % 2))
            if name == "good"
            else kinds[name](tmp_path / str(seed) / name)
            for place, name in sorted(names.items())
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "left out", RuntimeWarning)
            table = rank(checkpoints, seed=seed)
        assert set(table.index) == set(checkpoints), seed
        for label, row in table.iterrows():
            name = str(label).partition(": ")[2]
            assert np.isfinite(row["wbic"]) == (row["error"] == ""), (seed, label)
            if name == "good":
                assert row["error"] == "", (seed, label)
            elif name in BAD:
                assert row["error"] != "", (seed, label)
        drawn |= set(bad)
    assert rankings < 200 or drawn == set(BAD) | set(DOUBTFUL)
