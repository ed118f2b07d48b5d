"""A race spends its steps where the best checkpoint is undecided, and says what it cost."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from exact import linear_gaussian_posterior, z_score
from torch import nn

import ppl_fe as fe
from ppl_fe.inference.step.chains import Chains

N, D, GAMMA = 300, 16, 10.0
_RNG = np.random.default_rng(7)
X = _RNG.standard_normal((N, D)) * np.linspace(0.3, 1.5, D)
Y = X @ _RNG.standard_normal(D) + _RNG.standard_normal(N)
DATA = torch.tensor(X, dtype=torch.float32), torch.tensor(Y, dtype=torch.float32)
BEST = np.linalg.lstsq(X, Y, rcond=None)[0]
OFF = {"best": 0.0, "near": 0.5, "far": 2.0, "farther": 3.0}  # along the first coordinate


def anchor(off: float) -> np.ndarray[Any, Any]:
    return np.asarray(BEST + off * np.eye(D)[0])


def rank(offs: dict[str, float], **options: Any) -> pd.DataFrame:
    states = {
        name: {"weight": torch.tensor(anchor(off)[None], dtype=torch.float32)}
        for name, off in offs.items()
    }
    return fe.rank_checkpoints(
        states,
        nn.Linear(D, 1, bias=False),
        DATA,
        likelihood="normal",
        localization=GAMMA,
        progress_bar=False,
        **options,
    )


def exact(off: float) -> float:
    beta = 1 / math.log(N)
    return float(linear_gaussian_posterior(X, Y, anchor(off), gamma=GAMMA, beta=beta).wbic)


@pytest.fixture(scope="module")
def raced() -> pd.DataFrame:
    return rank(OFF)


def test_the_order_and_every_number_are_right(raced: pd.DataFrame) -> None:
    assert list(raced.index)[2:] == ["far", "farther"]
    for name, row in raced.iterrows():
        assert abs(z_score(row["wbic"], exact(OFF[str(name)]), row["wbic_mcse"])) < 4.5
    assert not raced["note"].str.contains("not mixed").any()


def test_steps_go_where_the_best_is_undecided(raced: pd.DataFrame) -> None:
    passes, errors = raced["passes"], raced["wbic_mcse"]
    assert passes["far"] == passes["farther"]  # a pilot and no more
    assert min(passes["best"], passes["near"]) > passes["far"]
    assert max(errors["best"], errors["near"]) < 0.8 * errors["far"]
    pilot = raced.attrs["pilot"]
    assert pilot["far"]["passes"] == passes["far"]
    assert pilot["best"]["passes"] == pilot["far"]["passes"]
    assert raced.attrs["cost"]["passes"] == pytest.approx(passes.sum())
    order = raced.attrs["order"]
    assert order["rounds"] >= 1
    assert order["settled"] == (raced["p_best"].max() > 0.95)
    assert order["settled"] or order["alike"] == ["best", "near"]


@pytest.mark.thorough
def test_equal_seeds_give_equal_tables(raced: pd.DataFrame) -> None:
    again = rank(OFF)
    pd.testing.assert_frame_equal(again, raced)
    assert again.attrs == raced.attrs


@pytest.mark.thorough
def test_a_clear_best_needs_no_more_than_the_pilot() -> None:
    table = rank({"best": 0.0, "far": 2.0})
    assert table.attrs["order"] == {"settled": True, "alike": [], "small": False, "rounds": 0}
    assert table["p_best"].tolist() == [1.0, 0.0]
    assert table["ess"].min() > 100


@pytest.mark.thorough
def test_what_is_alike_ends_below_what_matters_and_is_said() -> None:
    table = rank({"one": 0.0, "twin": 0.0})
    order = table.attrs["order"]
    assert order["alike"] == ["one", "twin"]
    assert not order["settled"]
    assert order["small"]
    above = table["wbic"] - N * table["anchor_loss"]
    assert (table["wbic_mcse"] <= np.maximum(0.5, 0.02 * above)).all()
    assert "No best one is told apart: one, twin lie within" in table.attrs["read_first"]


@pytest.mark.slow
def test_minibatches_race_too() -> None:
    table = rank(OFF, kernel=fe.BAOAB, batch_size=200)
    assert list(table.index)[2:] == ["far", "farther"]
    raced_on = table.attrs["order"]["rounds"] > 0
    assert (table["passes"]["far"] < table["passes"]["best"]) == raced_on
    for name, row in table.iterrows():
        found, error = exact(OFF[str(name)]), row["wbic_mcse"]
        # Minibatches may warm the chains by the tolerance, 2 %.
        slack = 0.02 * abs(found - N * row["anchor_loss"])
        assert abs(row["wbic"] - found) < 4.5 * error + slack


def test_lengths_are_what_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[int] = []
    evaluate = Chains.evaluate

    def counted(chains: Chains, *place: Any) -> Any:
        evaluated.append(chains.num_chains)
        return evaluate(chains, *place)

    monkeypatch.setattr(Chains, "evaluate", counted)
    table = rank({"best": 0.0, "far": 2.0}, num_samples=20, warmup_steps=30, thinning=2)
    assert "order" not in table.attrs
    assert set(evaluated) == {8}  # side by side
    # Of each chain 70 steps, and as many gradients as curvature and noise were measured by.
    passes = 4 * (70 + len(evaluated)) * 256 / N
    assert table["passes"].tolist() == pytest.approx([passes] * 2)


def test_an_unknown_end_is_refused() -> None:
    with pytest.raises(ValueError, match="until must be 'order' or 'mixed', got 'best'"):
        rank({"best": 0.0}, until="best")
