"""A table of checkpoints: the best first, and each number belongs to its own checkpoint."""

from __future__ import annotations

import math
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from cases.rankings import LABELS, QUICKEST, SHORT, Cliff, N, X, linear_state, rank_lines
from safetensors.torch import save_file
from torch import nn

import ppl_fe as fe
from ppl_fe.free_energy import lot_work, lots, racing, ranking_rows
from ppl_fe.free_energy.racing import probability_of_lowest


def test_best_first_and_what_to_read_first() -> None:
    states = {f"w={size}": linear_state(size) for size in (2.0, 0.0, 4.0)}
    table = rank_lines(states, localization=50.0, thinning=8)
    assert list(table.index) == ["w=0.0", "w=2.0", "w=4.0"]
    assert table.index.name == "checkpoint"
    assert list(table.columns) == [*ranking_rows.COLUMNS, "note", "error"]
    assert table["wbic"].is_monotonic_increasing
    assert table["p_best"].sum() == pytest.approx(1.0)
    assert table["note"].str.contains("off its minimum").tolist() == [False, True, True]
    assert (table["error"] == "").all()
    assert "density ratio" in table.attrs["read_first"]
    assert table["anchor_loss"]["w=0.0"] == pytest.approx(0.5 * math.log(2 * math.pi), rel=1e-6)


def test_held_out_and_baseline_columns() -> None:
    torch.manual_seed(122)
    modules = {k: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)) for k in "ab"}
    other = torch.randn(33, 3), torch.arange(33) % 2
    table = fe.rank_checkpoints(
        {name: module.state_dict() for name, module in modules.items()},
        modules["a"],
        (X, LABELS),
        held_out=other,
        baselines=True,
        **QUICKEST,
    )
    further = ["geometric_complexity", "neural_collapse", "perturbed_loss"]
    further += ["validation_loss", "held_out"]
    assert list(table.columns) == [*ranking_rows.COLUMNS, *further, "note", "error"]
    for name, module in modules.items():
        row = table.loc[name]
        loss = nn.functional.cross_entropy(module(other[0]), other[1]).item()
        assert row["validation_loss"] == pytest.approx(loss, rel=1e-5)
        # n of the training data, since λ̂ is theirs.
        assert row["held_out"] == pytest.approx(N * loss + row["llc"] * math.log(N), rel=1e-5)
        # The features of this checkpoint: tanh(Wx + b), whose Jacobian is diag(1 − f²) W.
        weight, bias = module.state_dict()["0.weight"], module.state_dict()["0.bias"]
        slope = 1 - (X @ weight.T + bias).tanh().square()
        complexity = (slope.square() @ weight.square().sum(1)).mean().item()
        assert row["geometric_complexity"] == pytest.approx(complexity, rel=1e-4)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, LABELS), batch_size=40)
    with pytest.raises(ValueError, match="baselines"):
        fe.rank_checkpoints(
            {"a": modules["a"].state_dict()}, modules["a"], loader, baselines=True, **QUICKEST
        )


OTHERS = [torch.float16, torch.float64]


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_batch_norm_statistics_are_each_checkpoint_s_own() -> None:
    torch.manual_seed(123)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    states = {}
    for k in range(2):
        state = state_of(module)
        state["1.running_mean"] = torch.full((4,), 0.5 * k)
        state["1.running_var"] = torch.full((4,), 1.0 + k)
        states[f"shift {k}"] = state
    table = fe.rank_checkpoints(
        states, module, (X, LABELS), held_out=(X[:20], LABELS[:20]), **QUICKEST
    )
    for name, state in states.items():
        module.load_state_dict(state)
        with torch.no_grad():
            logits = module.eval()(X)
        loss = nn.functional.cross_entropy(logits, LABELS).item()
        held_out = nn.functional.cross_entropy(logits[:20], LABELS[:20]).item()
        assert table["anchor_loss"][name] == pytest.approx(loss, rel=1e-5)
        assert table["validation_loss"][name] == pytest.approx(held_out, rel=1e-5)
    assert table["anchor_loss"].nunique() == 2


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, *(pytest.param(other, marks=pytest.mark.thorough) for other in OTHERS)],
)
def test_checkpoints_of_another_precision_are_those_of_their_values(dtype: torch.dtype) -> None:
    torch.manual_seed(124)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    stored = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state_of(module).items()}
    table = fe.rank_checkpoints({"a": stored}, module, (X, LABELS), **QUICKEST)
    module.load_state_dict({k: v.float() for k, v in stored.items()})
    with torch.no_grad():
        loss = nn.functional.cross_entropy(module.eval()(X), LABELS).item()
    assert table["anchor_loss"]["a"] == pytest.approx(loss, rel=1e-5)
    assert np.isfinite(table["wbic"]["a"])


@dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor


class Answering(nn.Linear):
    """A linear layer whose output is a dict or an object that has logits."""

    def __init__(self, kind: type) -> None:
        super().__init__(3, 2)
        self.kind = kind

    def forward(self, x: torch.Tensor) -> Any:
        return self.kind(logits=super().forward(x), hidden=x)


@pytest.mark.parametrize("kind", [dict, pytest.param(Output, marks=pytest.mark.thorough)])
def test_networks_that_answer_with_logits_rank_by_them(kind: type) -> None:
    torch.manual_seed(125)
    plain = nn.Linear(3, 2)
    (row,) = fe.rank_checkpoints(
        [plain.state_dict()],
        Answering(kind),
        (X, LABELS),
        held_out=(X[:20], LABELS[:20]),
        **QUICKEST,
    ).to_dict("records")
    loss = nn.functional.cross_entropy(plain(X), LABELS).item()
    held_out = nn.functional.cross_entropy(plain(X[:20]), LABELS[:20]).item()
    assert (row["anchor_loss"], row["validation_loss"]) == pytest.approx((loss, held_out), rel=1e-5)
    assert np.isfinite(row["wbic"])


def test_lots_give_the_answer_of_one_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    states = {f"w={size}": linear_state(size) for size in (0.0, 0.5, 1.0, 1.5, 2.0)}
    options = {"localization": 20.0, "num_samples": 40, "thinning": 2, "warmup_steps": 60}
    together = rank_lines(states, save_to=tmp_path / "one", **options)
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["0.zarr", "table.json"]
    monkeypatch.setattr(lots, "MOST_CHAINS", 8)
    apart = rank_lines(states, save_to=tmp_path / "three", **options)
    assert list(apart.index) == list(together.index)
    for name in states:
        for column in ("wbic", "llc"):
            error = math.hypot(apart[f"{column}_mcse"][name], together[f"{column}_mcse"][name])
            assert abs(apart[column][name] - together[column][name]) < 4 * error
    stores = sorted(path.name for path in (tmp_path / "three").glob("*.zarr"))
    assert stores == ["0.zarr", "1.zarr", "2.zarr"]
    losses = []
    for store, chains in zip(stores, (8, 8, 4), strict=True):
        with xr.open_datatree(tmp_path / "three" / store, engine="zarr") as draws:
            assert dict(draws.posterior.sizes) == {"chain": chains, "draw": 40, "w_dim_0": 3}
            losses.append(draws.sample_stats.loss.values)
    # Chains in the order of input: the first four are of the first checkpoint.
    assert N * losses[0][:4].mean() == pytest.approx(apart["wbic"]["w=0.0"], rel=1e-5)
    with pytest.raises(FileExistsError, match="save_to"):
        rank_lines(states, save_to=tmp_path / "three")


@pytest.mark.thorough
def test_lots_do_not_repeat_the_chains_of_another_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lots, "MOST_CHAINS", 4)
    tables = [rank_lines({"a": linear_state(0.0), "b": linear_state(0.0)}, seed=s) for s in (0, 1)]
    assert pd.concat(tables)["wbic"].nunique() == 4


def test_probability_of_lowest() -> None:
    # Two independent normals, one standard error of the difference apart: Φ(1).
    found = probability_of_lowest([0.0, math.sqrt(2.0)], [1.0, 1.0])
    assert found.sum() == pytest.approx(1.0)
    assert abs(found[0] - 0.8413) < 4 * math.sqrt(0.8413 * 0.1587 / racing.NUM_SIMULATIONS)
    assert np.array_equal(found, probability_of_lowest([0.0, math.sqrt(2.0)], [1.0, 1.0]))


def rows(**changed: tuple[float, float, float]) -> dict[str, dict[str, Any]]:
    """Rows of one standard error each, by name: WBIC, R-hat, ESS."""
    return {
        name: {"wbic": wbic, "wbic_mcse": 1.0, "anchor_loss": 0.0, "r_hat": r_hat, "ess": ess}
        | {"note": "", "error": ""}
        for name, (wbic, r_hat, ess) in changed.items()
    }


@pytest.mark.parametrize(("r_hat", "ess"), [(1.4, 900.0), (1.001, 5.0), (math.nan, math.nan)])
def test_p_best_is_not_given_where_the_error_bars_are_worth_nothing(
    r_hat: float, ess: float
) -> None:
    believed = {"a": (10.0, 1.001, 900.0), "b": (10.0 + math.sqrt(2.0), 1.03, 150.0)}
    table = ranking_rows.table_of(rows(**believed, c=(5.0, r_hat, ess)), seed=0, num_data=100)
    assert list(table.index) == ["c", "a", "b"]
    assert np.isnan(table["p_best"]["c"])
    # The others are compared among themselves: Φ(1), as if the third were not there.
    alone = ranking_rows.table_of(rows(**believed), seed=0, num_data=100)
    assert table["p_best"]["a"] == alone["p_best"]["a"]
    assert abs(alone["p_best"]["a"] - 0.8413) < 0.011
    read_first = table.attrs["read_first"]
    assert read_first.startswith("The order is not settled: the chains of c have not mixed")
    assert "not settled" not in alone.attrs["read_first"]


@pytest.mark.thorough
def test_chains_that_never_moved_have_no_p_best() -> None:
    states = {"a": linear_state(0.0), "b": linear_state(0.0)}
    table = rank_lines(states, step_size=1e-9, warmup_steps=0)
    assert (table["r_hat"] > 1.4).all()
    assert table["p_best"].isna().all()
    assert table["note"].str.contains("so that the error bars are worth nothing").all()
    assert "The order is not settled" in table.attrs["read_first"]


def test_unequal_training_losses_are_told() -> None:
    inputs = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    states = {f"w={w}": {"weight": torch.full((1, 2), w)} for w in (0.0, 1.0)}
    module = torch.nn.Linear(2, 1, bias=False)
    data = (inputs, torch.zeros(100))
    options: dict[str, Any] = {"likelihood": "normal", **QUICKEST}
    far = fe.rank_checkpoints(states, module, data, localization=1000.0, **options)
    assert "mostly the training loss" in far.attrs["read_first"]
    same = {"a": states["w=0.0"], "b": states["w=0.0"]}
    near = fe.rank_checkpoints(same, module, data, localization=1000.0, **options)
    assert "mostly the training loss" not in near.attrs["read_first"]


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
            **{**SHORT, "warmup_steps": 100, "thinning": 8},
        )
    assert list(table.index) == ["near", "far"]
    assert "all 4 chains became non-finite" in table["error"]["far"]
    assert table["error"]["near"] == ""
    assert table["p_best"]["near"] == 1.0


def test_baselines_that_cannot_be_had_are_refused_before_the_chains_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lot_work, "sample_local_posteriors", None)
    with pytest.raises(ValueError, match="no linear submodule"):
        rank_lines({"a": linear_state(0.0)}, baselines=True)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="checkpoints is empty"):
        rank_lines({})
    for name, value in {"num_chains": 0, "localization": -1.0}.items():
        with pytest.raises(ValueError, match=name):
            rank_lines({"a": linear_state(0.0)}, **{name: value})
