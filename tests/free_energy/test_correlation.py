"""Correlations against scipy, their intervals against the sampling distribution, the words."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr, spearmanr

from ppl_fe.free_energy.correlation import correlations, verdict


def correlated(number: int, rho: float, generator: np.random.Generator) -> pd.DataFrame:
    x = generator.standard_normal(number)
    noise = generator.standard_normal(number)
    return pd.DataFrame({"wbic": x, "accuracy": rho * x + math.sqrt(1 - rho**2) * noise})


def test_values_equal_scipy_with_ties() -> None:
    table = correlated(30, -0.5, np.random.default_rng(1)).round(1)
    frame = correlations(table, ["wbic"], "accuracy")
    x, y = table["wbic"], table["accuracy"]
    assert x.duplicated().any()
    assert frame["pearson"]["wbic"] == pytest.approx(pearsonr(x, y).statistic)
    assert frame["spearman"]["wbic"] == pytest.approx(spearmanr(x, y).statistic)
    assert frame["num_checkpoints"]["wbic"] == 30
    assert list(frame.columns) == [
        *("pearson", "pearson_low", "pearson_high"),
        *("spearman", "spearman_low", "spearman_high"),
        "num_checkpoints",
    ]


def test_intervals_equal_a_bootstrap_written_as_a_loop() -> None:
    # The loop draws its own resamples, so the ends agree to their Monte Carlo error, about 0.012.
    table = correlated(24, -0.4, np.random.default_rng(2))
    frame = correlations(table, ["wbic"], "accuracy")
    generator = np.random.default_rng(77)
    x, y = (table[name].to_numpy() for name in ("wbic", "accuracy"))
    drawn: dict[str, list[float]] = {"pearson": [], "spearman": []}
    for _ in range(2000):
        k = generator.integers(0, 24, 24)
        drawn["pearson"].append(np.corrcoef(x[k], y[k])[0, 1])
        drawn["spearman"].append(spearmanr(x[k], y[k]).statistic)
    for name, values in drawn.items():
        low, high = np.quantile(values, [0.025, 0.975])
        assert frame[f"{name}_low"]["wbic"] == pytest.approx(low, abs=0.06)
        assert frame[f"{name}_high"]["wbic"] == pytest.approx(high, abs=0.06)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rho, number, repeats = -0.6, 100, 300
    generator = np.random.default_rng(4)
    covered, widths = 0, []
    for repeat in range(repeats):
        table = correlated(number, rho, generator)
        frame = correlations(
            table, ["wbic"], "accuracy", method=["pearson"], num_bootstrap=400, seed=repeat
        )
        low, high = frame["pearson_low"]["wbic"], frame["pearson_high"]["wbic"]
        covered += low <= rho <= high
        widths.append(high - low)
    # The percentile bootstrap falls a little short of 95 % at this size, hence 93.5 %.
    error = math.sqrt(0.935 * 0.065 / repeats)
    assert abs(covered / repeats - 0.935) < 3.5 * error
    expected_width = 2 * 1.96 * (1 - rho**2) / math.sqrt(number)
    assert np.mean(widths) == pytest.approx(expected_width, rel=0.08)


def test_groups_take_out_what_lies_between_them() -> None:
    # Between groups the criterion and the outcome rise together, within them they oppose.
    generator = np.random.default_rng(5)
    group = np.repeat(np.arange(6), 10)
    x = generator.standard_normal(60)
    table = pd.DataFrame(
        {
            "wbic": x + 10.0 * group,
            "accuracy": -x + 10.0 * group + 0.3 * generator.standard_normal(60),
            "configuration": [f"lr={k}" for k in group],
        }
    ).sample(frac=1, random_state=0)
    assert correlations(table, ["wbic"], "accuracy")["pearson"]["wbic"] > 0.9
    within = correlations(table, ["wbic"], "accuracy", groups="configuration")
    centred = table[["wbic", "accuracy"]] - table.groupby("configuration")[
        ["wbic", "accuracy"]
    ].transform("mean")
    expected = pearsonr(centred["wbic"], centred["accuracy"]).statistic
    assert within["pearson"]["wbic"] == pytest.approx(expected)
    assert within["pearson_high"]["wbic"] < -0.8
    assert within["spearman_high"]["wbic"] < -0.5


def test_grouped_ranks_are_residuals_of_ranks() -> None:
    table = correlated(20, -0.5, np.random.default_rng(6))
    table["seed"] = np.arange(20) % 3
    frame = correlations(table, ["wbic"], "accuracy", groups="seed", method=["spearman"])
    ranks = table[["wbic", "accuracy"]].rank()
    centred = ranks - ranks.groupby(table["seed"]).transform("mean")
    expected = pearsonr(centred["wbic"], centred["accuracy"]).statistic
    assert frame["spearman"]["wbic"] == pytest.approx(expected)


def test_checkpoints_without_a_number_are_left_out_and_counted() -> None:
    table = correlated(12, -0.9, np.random.default_rng(7))
    table["llc"] = table["wbic"]
    table.loc[3, "wbic"] = np.nan
    table.loc[5, "wbic"] = np.inf
    frame = correlations(table, ["wbic", "llc"], "accuracy")
    kept = table.drop([3, 5])
    assert frame["num_checkpoints"].tolist() == [10, 12]
    assert frame["pearson"]["wbic"] == pytest.approx(
        pearsonr(kept["wbic"], kept["accuracy"]).statistic
    )


def test_equal_seeds_give_equal_intervals_and_others_do_not() -> None:
    table = correlated(15, -0.5, np.random.default_rng(8))
    frames = [correlations(table, ["wbic"], "accuracy", seed=seed) for seed in (1, 1, 2)]
    pd.testing.assert_frame_equal(frames[0], frames[1])
    assert frames[0]["pearson_low"]["wbic"] != frames[2]["pearson_low"]["wbic"]


@pytest.mark.parametrize("number", [2, 10])
def test_undefined_correlations_are_nan_and_said_so(number: int) -> None:
    table = correlated(number, -0.5, np.random.default_rng(9))
    if number == 10:  # equal up to the rounding of float32
        table["wbic"] = 0.01 + 1e-9 * table["wbic"]
    frame = correlations(table, ["wbic"], "accuracy")
    assert frame.drop(columns="num_checkpoints").isna().all(axis=None)
    assert "undefined" in verdict(frame)


def test_few_checkpoints_with_degenerate_resamples_still_give_an_interval() -> None:
    table = pd.DataFrame({"wbic": [1.0, 2.0, 4.0], "accuracy": [0.9, 0.5, 0.6]})
    frame = correlations(table, ["wbic"], "accuracy")
    assert -1.0 <= frame["pearson_low"]["wbic"] <= frame["pearson"]["wbic"]
    assert frame["pearson_high"]["wbic"] == pytest.approx(1.0)


def test_errors_name_the_column_and_the_method() -> None:
    table = correlated(5, 0.0, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"no column \['llc', 'transfer'\]"):
        correlations(table, ["llc"], "transfer")
    with pytest.raises(ValueError, match="'kendall'"):
        correlations(table, ["wbic"], "accuracy", method=["kendall"])
    frame = correlations(table, ["wbic"], "accuracy", method=["pearson"])
    with pytest.raises(ValueError, match="'spearman'"):
        verdict(frame, method="spearman")


def frame_of(rows: dict[str, tuple[float, float, float]]) -> pd.DataFrame:
    columns = ["pearson", "pearson_low", "pearson_high"]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return frame.assign(num_checkpoints=24)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ((-0.6, -0.8, -0.1), "claimed negative sign is seen"),
        ((0.6, 0.1, 0.8), "opposite of the claimed one"),
        ((-0.3, -0.6, 0.2), "Undecided"),
        ((0.3, -0.2, 0.6), "Undecided"),
    ],
)
def test_verdict_reads_the_sign_off_the_interval(
    row: tuple[float, float, float], words: str
) -> None:
    text = verdict(frame_of({"wbic": row}), outcome="few-shot accuracy")
    known = ["claimed negative sign is seen", "opposite of the claimed one", "Undecided"]
    assert [phrase for phrase in known if phrase in text] == [words]
    assert f"few-shot accuracy over 24 checkpoints: Pearson r = {row[0]:+.2f}" in text
    assert "other criteria" not in text


def test_verdict_compares_with_the_most_negative_of_the_others() -> None:
    others = {"validation_loss": (-0.4, -0.6, -0.1), "neural_collapse": (0.9, 0.8, 0.95)}
    apart = verdict(frame_of({"wbic": (-0.8, -0.9, -0.7), **others}))
    assert "best of the other criteria is validation_loss, r = -0.40" in apart
    assert "wbic does better, and the two intervals do not overlap" in apart
    near = verdict(frame_of({"wbic": (-0.3, -0.5, 0.1), **others}))
    assert "wbic does no better, but the two intervals overlap" in near
    undefined = frame_of({"wbic": (-0.3, -0.5, 0.1), "training_loss": (math.nan,) * 3})
    assert "other criteria" not in verdict(undefined)


def test_resamples_of_one_value_alone_have_no_interval() -> None:
    """With all accuracies equal no resample has a correlation, and neither has the whole."""
    table = correlated(6, 0.5, np.random.default_rng(5))
    table["accuracy"] = 0.5
    frame = correlations(table, ["wbic"], "accuracy")
    assert frame.drop(columns="num_checkpoints").isna().all(axis=None)
