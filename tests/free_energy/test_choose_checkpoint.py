"""Several checkpoints and a few labels: one order, one recommendation, no row lost."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from cases.fresh_heads import D_BODY, DATA, TRUE, TwoParts, body_state, exactly, uninterrupted
from torch import nn

import ppl_fe as fe
from ppl_fe.free_energy import lots
from ppl_fe.free_energy.downstream.recommendation import expected_regret, recommend
from ppl_fe.free_energy.downstream.short_finetunes import FIRST_STEPS
from ppl_fe.free_energy.ladders import Climbed, Ladders

CHEAP = ("logme", "knn_score", "ridge_score")
GAMMA = 50.0
SHORT: dict[str, Any] = {
    "likelihood": "normal",
    "head": "head",
    "features": "body",
    "compile": "traced",
    "progress_bar": False,
}


def eight() -> dict[str, Any]:
    """Bodies further and further from the truth, in disorder; their −log Z is exact."""
    away = np.array([0.4, -0.4, 0.4, 0.4])
    return {f"number {k}": TRUE[:D_BODY] + k * away for k in (3, 7, 0, 5, 1, 6, 2, 4)}


@pytest.mark.thorough
def test_eight_candidates_come_out_in_exactly_the_right_order() -> None:
    bodies = eight()
    exact = pd.Series({k: exactly(w, GAMMA).free_energy for k, w in bodies.items()}).sort_values()
    assert np.diff(exact).min() > 2.0
    assert list(exact.index) == [f"number {k}" for k in range(8)]
    table = fe.choose_checkpoint(
        {name: body_state(weights) for name, weights in bodies.items()},
        TwoParts(),
        DATA,
        criteria=["free_energy", "expected_loss"],
        localization=GAMMA,
        num_samples=1500,
        warmup_steps=200,
        **SHORT,
    )
    assert list(table.index) == list(exact.index)
    for name, value in exact.items():
        row = table.loc[str(name)]
        assert abs(row["free_energy"] - value) < max(3 * row["free_energy_error"], 0.2)
        energy = exactly(bodies[str(name)], GAMMA).wbic
        assert abs(row["expected_loss"] - energy) < max(3 * row["expected_loss_error"], 0.2)
    best = str(exact.index[0])
    assert table.attrs["recommendation"].startswith(f"Take {best!r}: of 8 checkpoints the best by")
    assert table.attrs["agreement"]["free_energy"]["free_energy"] == 1.0
    assert table.attrs["localization"] == GAMMA


@pytest.mark.slow
def test_gamma_is_chosen_once_for_all_by_evidence() -> None:
    bodies = eight()
    table = fe.choose_checkpoint(
        {name: body_state(weights) for name, weights in bodies.items()},
        TwoParts(),
        DATA,
        criteria=["free_energy"],
        num_samples=800,
        warmup_steps=200,
        **SHORT,
    )
    some = [list(bodies.values())[k] for k in (0, 2, 4, 6)]

    def evidence(gamma: float) -> float:
        return float(np.mean([exactly(w, gamma).free_energy for w in some]))

    best = min(evidence(10 ** (k / 2)) for k in range(-4, 9))
    assert evidence(table.attrs["localization"]) - best < 0.5
    tried = pd.DataFrame(table.attrs["neighbourhoods"])
    for gamma, value, mcse in tried.iloc[:, :3].to_numpy():
        assert abs(value - evidence(gamma)) < max(4 * mcse, 0.5)


class Digits(nn.Sequential):
    def __init__(self, num_classes: int = 3) -> None:
        super().__init__(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, num_classes))


def pictures(count: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    labels = torch.arange(count) % 3
    return torch.randn(count, 6) + 2 * torch.eye(6)[labels], labels


def states() -> dict[str, dict[str, torch.Tensor]]:
    """One body that shows the classes, one that shows half as much of them, one that shows none."""
    found = {}
    for name, size in {"clear": 1.0, "dim": 0.1, "blind": 0.0}.items():
        torch.manual_seed(4)
        state = {name: value.clone() for name, value in Digits().state_dict().items()}
        state["0.weight"] = torch.eye(5, 6) * size
        state["0.weight"][3:] = torch.eye(6)[3:5]
        found[name] = state
    return found


def test_all_columns_errors_and_costs() -> None:
    table = fe.choose_checkpoint(
        states(),
        Digits(),
        pictures(),
        by="ridge_score",
        localization=30.0,
        num_rungs=4,
        num_samples=12,
        warmup_steps=5,
        compile="eager",
        progress_bar=False,
    )
    names = ["free_energy", "expected_loss", "linearized_free_energy", "linearized_score"]
    names += ["zero_shot_loss", "zero_shot_score", "logme"]
    names += ["knn_score", "ridge_score", "pactran", "finetune_loss"]
    both = [column for name in names for column in (name, f"{name}_error")]
    rest = ["r_hat", "ess", "finetune_score", "finetune_score_error", "finetune_steps"]
    ours = ["consensus", "consensus_error"]
    assert list(table.columns) == [*ours, *both, *rest, "note", "error"]
    assert table[both].notna().all(axis=None)
    assert table.index[-1] == "blind"
    assert table["pactran"].idxmax() == table["logme"].idxmin() == "blind"
    assert set(table.attrs["passes"]) == set(names)
    assert table.attrs["passes"]["logme"] == 1
    assert table.attrs["passes"]["free_energy"] == 4 * 2 * 17 * 3
    assert table.attrs["passes"]["linearized_score"] == 2 + 2 * 3  # of three classes
    assert table.attrs["linearized_at"] == {"localization": 30.0, "head_precision": None}
    # Half of three, and two at least: the third stopped after the first round.
    assert sorted(table["finetune_steps"]) == [FIRST_STEPS, 2 * FIRST_STEPS, 2 * FIRST_STEPS]
    said = table.attrs["recommendation"]
    assert "Its expected regret is" in said
    assert "its error over the labels" in said
    assert "would take 'clear'" in said or table.index[0] == "clear"
    assert table.attrs["agreement"]["logme"]["logme"] == 1.0
    pd.concat([table, table])  # what stands in attrs can be compared


def test_a_fresh_head_may_be_missing_or_of_another_task() -> None:
    bodies = states()
    for name in ("2.weight", "2.bias"):
        del bodies["clear"][name]
    bodies["dim"]["2.weight"] = torch.zeros(7, 5)
    table = fe.choose_checkpoint(
        bodies, Digits(), pictures(), head="2", by="logme", criteria=["logme", "finetune_loss"],
        localization=30.0, progress_bar=False,
    )  # fmt: skip
    assert (table["error"] == "").all()
    assert table.index[-1] == "blind"
    assert table["finetune_loss"]["blind"] > table["finetune_loss"]["clear"] - 0.1


def cheap(states: Any, module: Any, data: Any, **options: Any) -> pd.DataFrame:
    chosen: dict[str, Any] = {"by": "logme", "criteria": CHEAP, "progress_bar": False}
    return fe.choose_checkpoint(states, module, data, **{**chosen, **options})


def test_what_does_not_fit_is_an_error_of_its_row() -> None:
    given: dict[str, Any] = states()
    given["other head"] = {**given["clear"], "2.weight": torch.zeros(7, 5)}
    given["other architecture"] = nn.Linear(6, 3).state_dict()
    given["nowhere"] = "nowhere.pt"
    table = cheap(given, Digits(), pictures())
    assert set(table.index) == set(given)
    assert set(table.index[-3:]) == {"other head", "other architecture", "nowhere"}
    assert "2.weight is (7, 5), the network has (3, 5)" in table["error"]["other head"]
    assert "missing from it" in table["error"]["other architecture"]
    assert table["error"]["nowhere"] == "no checkpoint at nowhere.pt"
    assert "of 3 checkpoints" in table.attrs["recommendation"]


def test_two_architectures_are_each_ranked_within_their_own() -> None:
    torch.manual_seed(6)
    other = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    given: dict[str, Any] = {**states(), "relu": other.state_dict(), "nowhere": "nowhere.pt"}
    table = cheap(given, [Digits(), other], pictures())
    kinds = ["Digits of 53 weights"] * 4 + ["Sequential of 43 weights"]
    assert table["architecture"].tolist() == kinds
    assert list(table.index[2:]) == ["blind", "nowhere", "relu"]
    assert table["error"].tolist()[3:] == ["no checkpoint at nowhere.pt", ""]
    said = table.attrs["recommendation"]
    assert said.startswith(
        "2 architectures, each ranked within its own. Digits of 53 weights: Take"
    )
    assert "Sequential of 43 weights: Take 'relu': of 1 checkpoints" in said
    assert set(table.attrs["agreement"]) == set(kinds)
    with pytest.raises(ValueError, match="module is empty"):
        cheap(given, [], pictures())
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module, got int"):
        cheap(given, 3, pictures())


def test_when_all_fail_the_table_says_so() -> None:
    bad = {"a": {"x": torch.zeros(1)}, "b": "nowhere.pt"}
    table = cheap(bad, Digits(), pictures(), by="logme")
    assert list(table["error"] != "") == [True, True]
    said = table.attrs["recommendation"]
    assert said.startswith("No checkpoint can be recommended: none of 2 came to a number by logme")


def test_labels_that_say_nothing_are_refused_in_a_sentence() -> None:
    x, y = pictures()
    with pytest.raises(ValueError, match="downstream: all 24 labels are of class 1; give examples"):
        cheap(states(), Digits(), (x, torch.ones_like(y)))
    with pytest.raises(ValueError, match=r"downstream: all 24 targets are 0\.5; there is nothing"):
        cheap(states(), Digits(1), (x, torch.full((24, 1), 0.5)), likelihood="normal")
    with pytest.raises(ValueError, match="the label at index 2 is 3, allowed are 0 to 2"):
        cheap(states(), Digits(), (x, y + 1))


def test_fewer_labels_than_classes_are_told() -> None:
    x, y = pictures()
    table = cheap(states(), Digits(), (x[:2], y[:2]))
    assert (table["error"] == "").all()
    assert table["logme"].notna().all()
    assert table["logme_error"].isna().all()
    assert "The 2 labels show 2 of the head's 3 classes" in table.attrs["read_first"]


def test_criteria_that_mean_nothing_here_are_refused() -> None:
    x, y = pictures()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"by": "logmee"}, "by='logmee' is not among the criteria computed; did you mean 'logme'"),
        ({"criteria": ["logme", "ridge"]}, "there is no 'ridge'; did you mean 'ridge_score'"),
        ({"criteria": ["logme", "zero_shot_loss"], "head": "2"}, "head= names a fresh one"),
        ({"head": "head"}, "head='head' names no parameter"),
    ]
    for options, said in cases:
        with pytest.raises(ValueError, match=said):
            cheap(states(), Digits(), (x, y), **options)
    with pytest.raises(ValueError, match="'pactran' needs integer classes"):
        cheap(states(), Digits(), (x, x[:, :3]), criteria=["logme", "pactran"], likelihood="normal")
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y))
    with pytest.raises(ValueError, match="in memory"):
        cheap(states(), Digits(), loader)


def test_why_there_is_no_number_is_said_of_a_checkpoint_that_was_read() -> None:
    rows = {"logme": math.nan, "note": ["", "no features"], "error": ["no file at a", ""]}
    table = pd.DataFrame({**rows, "logme_error": math.nan}, index=["a", "b"])
    assert recommend(table, "logme", ("logme",), 5).endswith("by logme (b: no features).")
    assert recommend(table[:1], "logme", ("logme",), 5).endswith("by logme (a: no file at a).")


def test_the_expected_regret_is_that_of_two_normals() -> None:
    # With an error far below the spread nothing is shrunk: the difference is 1.
    values, errors = np.array([0.0, 1.0]), np.array([0.01, 0.01])
    assert expected_regret(values, errors, 1).regret == pytest.approx(1.0, abs=0.01)
    assert expected_regret(values, errors, 0).best == 1.0
    # Values that differ by no more than their errors are all alike.
    same = expected_regret(np.array([0.0, 0.1, 0.2]), np.full(3, 5.0), 2)
    assert same.regret == pytest.approx(0.0, abs=1e-6)
    # Between: draws of N(m, s²) with m, s² of the normal-normal model.
    values, error = np.array([0.0, 2.0, 4.0]), 1.5
    spread = values.var(ddof=1) - error**2
    share = spread / (spread + error**2)
    rng = np.random.default_rng(1)
    mean = values.mean() + share * (values - values.mean())
    draws = mean + math.sqrt(share) * error * rng.standard_normal((200_000, 3))
    expected = (draws[:, 0] - draws.min(1)).mean()
    assert expected_regret(values, np.full(3, error), 0).regret == pytest.approx(expected, rel=0.05)


def test_chains_that_have_not_mixed_are_not_recommended() -> None:
    table = pd.DataFrame(
        {
            "free_energy": [1.0, 2.0, 3.0],
            "free_energy_error": [0.1, 0.1, 0.1],
            "r_hat": [1.3, 1.01, 1.02],
            "note": ["", "", ""],
            "error": ["", "", ""],
        },
        index=["a", "b", "c"],
    )
    said = recommend(table, "free_energy", ("free_energy",), 25)
    assert said.startswith("Take 'b': of 2 checkpoints the best by free_energy, 2 ± 0.1 nats on 25")
    assert "1 others left out" in said
    table["r_hat"] = 1.3
    said = recommend(table, "free_energy", ("free_energy",), 25)
    assert said.startswith("No checkpoint can be recommended by free_energy: the chains of none")


@pytest.mark.slow
def test_ladders_are_the_same_as_tasks() -> None:
    six = {name: body_state(weights) for name, weights in list(eight().items())[:6]}
    short: dict[str, Any] = {**SHORT, "num_samples": 30, "warmup_steps": 20, "num_rungs": 12}
    alone, tasks = (
        fe.choose_checkpoint(
            six, TwoParts(), DATA, criteria=["free_energy"], localization=GAMMA, n_jobs=n, **short
        )
        for n in (None, 1)
    )
    assert alone["error"].tolist() == [""] * 6
    pd.testing.assert_frame_equal(tasks, alone, check_exact=True)
    assert tasks.attrs == alone.attrs


def test_what_the_features_do_not_bear_is_a_note_of_its_row() -> None:
    given = states()
    given["infinite"] = {**given["clear"], "0.weight": torch.full((5, 6), torch.inf)}
    table = cheap(given, Digits(), pictures(), features="2")
    noted = table["note"].astype(bool) | table["error"].astype(bool)
    assert noted[noted].index.tolist() == ["infinite"]
    assert table.index[-1] == "infinite"


def test_one_name_is_no_list_of_criteria() -> None:
    with pytest.raises(TypeError, match=r"criteria must be several names; pass \['logme'\]"):
        cheap(states(), Digits(), pictures(), criteria="logme")


def test_those_that_are_fine_tuned_longer_come_first() -> None:
    table = fe.choose_checkpoint(
        states(),
        Digits(),
        pictures(),
        by="finetune_loss",
        criteria=["finetune_loss"],
        localization=30.0,
        progress_bar=False,
    )
    steps, loss = table["finetune_steps"].tolist(), table["finetune_loss"].tolist()
    assert steps == sorted(steps, reverse=True)
    assert steps[0] > steps[-1]
    for count in set(steps):
        own = [value for value, taken in zip(loss, steps, strict=True) if taken == count]
        assert own == sorted(own)


def test_of_candidates_side_by_side_one_that_fails_costs_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All are tried together, and then, since that failed, each by itself."""
    network = fe.FlatNetwork(Digits())
    anchors_of = {name: network.with_state(state).anchor for name, state in states().items()}
    tried = []

    def climb(own: Ladders, anchors: torch.Tensor) -> tuple[list[Climbed], xr.DataTree]:
        tried.append(len(anchors))
        if any(torch.equal(anchor, anchors_of["blind"]) for anchor in anchors):
            raise fe.DivergedError("not finite")
        ladder = pd.DataFrame({"energy": [1.0, 2.0], "energy_mcse": 0.1, "r_hat": 1.0, "ess": 99.0})
        return [Climbed(float(anchor[0]), 0.1, 0.0, ladder) for anchor in anchors], uninterrupted()

    monkeypatch.setattr(Ladders, "climb", climb)
    monkeypatch.setattr(Ladders, "placed", lambda own, anchors: own)
    monkeypatch.setattr(lots, "MOST_CHAINS", 128)
    table = fe.choose_checkpoint(
        states(), Digits(), pictures(), criteria=["free_energy"], localization=3.0,
        progress_bar=False,
    )  # fmt: skip
    assert tried == [3, 1, 1, 1]
    assert table["error"].to_dict() == {"clear": "", "dim": "", "blind": "not finite"}
    for name in ("clear", "dim"):
        assert table["free_energy"][name] == float(anchors_of[name][0])
    assert table.attrs["localization"] == 3.0
