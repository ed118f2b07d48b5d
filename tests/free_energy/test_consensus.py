"""The consensus of criteria: places in their lists, averaged, and who has a vote."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import ppl_fe as fe
from ppl_fe.free_energy.downstream.consensus import consensus
from ppl_fe.free_energy.downstream.recommendation import recommend

TRAINED = ("free_energy", "zero_shot_loss", "zero_shot_score")


def table_of(**columns: list[float]) -> pd.DataFrame:
    errors = {f"{name}_error": [0.0] * len(values) for name, values in columns.items()}
    return pd.DataFrame({**errors, **columns}, index=list("abcd")[: len(columns["r_hat"])])


def test_places_are_averaged_with_ties_by_halves_and_the_better_way_up() -> None:
    table = table_of(
        free_energy=[10.0, 12.0, 11.0, 13.0],
        zero_shot_loss=[1.0, 1.0, 2.0, 3.0],
        zero_shot_score=[0.2, 0.9, 0.5, 0.1],
        r_hat=[1.0] * 4,
    )
    value, error = consensus(table, TRAINED, fresh_head=False)
    places = np.array([[0, 2, 1, 3], [0.5, 0.5, 2, 3], [2, 0, 1, 3]])
    np.testing.assert_allclose(value, places.mean(0) / 4)
    np.testing.assert_allclose(error, 0.0, atol=1e-12)


def test_a_free_energy_whose_chains_have_not_mixed_has_no_vote() -> None:
    given = {"zero_shot_loss": [2.0, 1.0, 3.0], "zero_shot_score": [0.5, 0.7, 0.3]}
    unmixed = table_of(free_energy=[9.0, 10.0, 0.0], **given, r_hat=[1.0, 1.0, 1.5])
    value, _ = consensus(unmixed, TRAINED, fresh_head=False)
    # The third has the lowest −log Z by far, and is last all the same; the other two have one of 2.
    np.testing.assert_allclose(value, [(0 / 2 + 2 / 3) / 3, (1 / 2 + 0) / 3, 2 / 3])
    alone, _ = consensus(unmixed, ("free_energy",), fresh_head=False)
    np.testing.assert_allclose(alone, [0.0, 0.5, np.nan])


def test_the_error_is_that_of_places_under_the_errors_of_values() -> None:
    table = table_of(zero_shot_loss=[0.0, 1.0], r_hat=[1.0, 1.0])
    table["zero_shot_loss_error"] = 1.0
    value, error = consensus(table, ("zero_shot_loss",), fresh_head=False)
    np.testing.assert_allclose(value, [0.0, 0.5])
    # The first is ahead with probability Φ(1/√2) = 0.760.
    sd = 0.5 * (0.7602 * 0.2398) ** 0.5
    np.testing.assert_allclose(error, sd, rtol=0.05)


def test_the_sentence_names_the_consensus_and_its_unit() -> None:
    table = table_of(
        zero_shot_loss=[1.0, 2.0, 3.0], zero_shot_score=[0.9, 0.8, 0.7], r_hat=[1.0] * 3
    )
    computed = TRAINED[1:]
    table["consensus"], table["consensus_error"] = consensus(table, computed, fresh_head=False)
    said = recommend(table, "consensus", computed, 25)
    assert said.startswith("Take 'a': of 3 checkpoints the best by consensus, 0 ± 0 of the list on")
    assert "the errors of its votes" in said


def test_where_no_chains_mixed_nothing_is_recommended_by_free_energies_alone() -> None:
    table = table_of(free_energy=[1.0, 2.0], r_hat=[2.0, 2.0])
    computed = ("free_energy",)
    table["consensus"], table["consensus_error"] = consensus(table, computed, fresh_head=True)
    said = recommend(table, "consensus", computed, 25)
    assert "the chains of none have mixed" in said


def choose(**options: object) -> pd.DataFrame:
    torch.manual_seed(0)
    x = torch.randn(30, 4)
    y = (x[:, 0] > 0).long()
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    states = {}
    for name, size in {"useful": 3.0, "useless": 0.0}.items():
        states[name] = {"0.weight": torch.eye(3, 4) * size, "0.bias": torch.zeros(3)}
        states[name]["0.weight"][1:] = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    return fe.choose_checkpoint(
        states, module, (x, y), head="1", progress_bar=False, **options,  # type: ignore[arg-type]
    )  # fmt: skip


def test_it_orders_by_default_whatever_criteria_are_computed() -> None:
    table = choose(criteria=["ridge_score", "pactran", "logme"])
    assert list(table.columns[:2]) == ["consensus", "consensus_error"]
    assert table.index[0] == "useful"
    assert table["consensus"].is_monotonic_increasing
    assert table.attrs["recommendation"].startswith("Take 'useful'")


def test_without_a_vote_it_says_who_has_one() -> None:
    with pytest.raises(
        ValueError, match="goes by free_energy, linearized_free_energy, ridge_score, pactran"
    ):
        choose(criteria=["logme"])
    table = choose(criteria=["logme"], by="logme")
    assert "consensus" not in table
