"""Does a criterion order the checkpoints as their downstream results do, and how sure is that?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import rankdata

from ppl_fe.arguments import did_you_mean

Array = npt.NDArray[np.float64]
METHODS = ("pearson", "spearman")
# Sums in float32 are not known better than this. Checkpoints trained to one loss differ in it by
# less, yet their rounding errors follow the training settings and would correlate.
RESOLUTION = 1e-5


def _centred(values: Array, blocks: list[slice]) -> Array:
    return np.concatenate(
        [values[:, b] - values[:, b].mean(axis=1, keepdims=True) for b in blocks], axis=1
    )


def _correlation(x: Array, y: Array, blocks: list[slice], method: str) -> Array:
    """Correlate along the last axis of (R, n), about the mean of each block of columns.

    NaN where x or y is constant within every block.
    """
    constant = np.zeros(len(x), dtype=bool)
    units = []
    for values in (x, y):
        smallest = RESOLUTION * np.abs(values).max(axis=1)
        flat = np.all([np.ptp(values[:, b], axis=1) <= smallest for b in blocks], axis=0)
        used = np.asarray(rankdata(values, axis=1), float) if method == "spearman" else values
        centred = _centred(used, blocks)
        units.append(centred / np.where(flat, 1.0, np.linalg.norm(centred, axis=1))[:, None])
        constant |= flat
    # Rounding can carry a perfect correlation past one.
    within = np.clip((units[0] * units[1]).sum(axis=1), -1.0, 1.0)
    return np.where(constant, np.nan, within)


def _interval(resampled: Array) -> tuple[float, float]:
    defined = resampled[~np.isnan(resampled)]
    if len(defined) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)


def correlations(
    table: pd.DataFrame,
    criteria: Sequence[str],
    outcome: str,
    *,
    method: Sequence[str] = METHODS,
    num_bootstrap: int = 2000,
    groups: str | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Correlate each criterion with the outcome, with 95 % bootstrap intervals.

    The percentile bootstrap (Efron & Tibshirani 1993, chapter 13) resamples checkpoints, the same
    ones for each criterion that has the same rows; ranks are taken within each resample. It takes
    checkpoints as independent, so an interval over few training configurations with many seeds
    each is too narrow. With ``groups`` the correlation is partial: values (ranks, for Spearman)
    count from their group's mean, and each group is resampled by itself.

    Args:
        table: one row a checkpoint.
        criteria: columns to judge.
        outcome: the column to predict.
        method: "pearson", "spearman", or by default both.
        num_bootstrap: resamples; the default, 2000, leaves an error of about 0.01 in the ends.
        groups: column whose groups are compared within, such as the training configuration; none
            by default.
        seed: of the resampling, 0 by default.

    Returns:
        Index ``criterion``; for each method its value and ``_low`` and ``_high``, then
        ``num_checkpoints``. A checkpoint whose criterion or outcome is not finite is left out, so
        that number can differ from row to row. A correlation is NaN with fewer than three
        checkpoints, or where either column is constant (to 1e-5 of its largest value, the rounding
        of float32); resamples in which one is constant do not count towards the interval.

    Raises:
        ValueError: a column that is missing or an unknown method.

    Example:
        >>> table = pd.DataFrame({"wbic": [1.0, 2.0, 3.0, 4.0], "accuracy": [0.9, 0.8, 0.6, 0.5]})
        >>> frame = correlations(table, ["wbic"], "accuracy", method=["pearson"])
        >>> print(f"{frame['pearson']['wbic']:.3f}")
        -0.990
        >>> list(frame.columns)
        ['pearson', 'pearson_low', 'pearson_high', 'num_checkpoints']
    """
    wanted = [*criteria, outcome] + ([] if groups is None else [groups])
    missing = [name for name in wanted if name not in table.columns]
    if missing:
        near = did_you_mean(missing[0], map(str, table.columns))
        raise ValueError(
            f"table has no column {missing}; {near or f'it has {list(table.columns)}'}"
        )
    unknown = [name for name in method if name not in METHODS]
    if unknown:
        raise ValueError(f"method={unknown} is unknown; choose from {METHODS}")
    rows: list[dict[str, Any]] = []
    for criterion in criteria:
        x, y = (table[name].to_numpy(float) for name in (criterion, outcome))
        kept = np.isfinite(x) & np.isfinite(y)
        labels = np.zeros(len(x), int) if groups is None else pd.factorize(table[groups])[0]
        order = np.flatnonzero(kept)[np.argsort(labels[kept], kind="stable")]
        sizes = np.unique(labels[kept], return_counts=True)[1]
        ends = np.cumsum(sizes)
        blocks = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        row: dict[str, Any] = {"criterion": criterion}
        generator = np.random.default_rng(seed)
        drawn = [
            generator.integers(b.start, b.stop, (num_bootstrap, b.stop - b.start)) for b in blocks
        ]
        for name in method:
            value, low, high = float("nan"), float("nan"), float("nan")
            if len(order) >= 3:
                resample = order[np.concatenate(drawn, axis=1)]
                value = float(_correlation(x[order][None], y[order][None], blocks, name)[0])
                if not np.isnan(value):
                    low, high = _interval(_correlation(x[resample], y[resample], blocks, name))
            row |= {name: value, f"{name}_low": low, f"{name}_high": high}
        rows.append(row | {"num_checkpoints": len(order)})
    return pd.DataFrame(rows).set_index("criterion")


def verdict(
    frame: pd.DataFrame,
    criterion: str = "wbic",
    *,
    outcome: str = "downstream accuracy",
    method: str = "pearson",
) -> str:
    """Put what the correlations say about one criterion in words.

    The claim is negative: the lower the criterion, the better the outcome. It counts as seen, or
    as contradicted, only where the whole interval lies on one side of zero. The other rows of the
    frame carry the same claim; the best of them is the most negative.

    Args:
        frame: from `correlations`.
        criterion: the row to judge, "wbic" by default.
        outcome: what was predicted, for the sentence; "downstream accuracy" by default.
        method: "pearson" (default) or "spearman".

    Returns:
        Two to four sentences.

    Raises:
        ValueError: the frame lacks the criterion or the method.

    Example:
        >>> frame = pd.DataFrame(
        ...     {"pearson": [-0.8, -0.2], "pearson_low": [-0.9, -0.5],
        ...      "pearson_high": [-0.6, 0.2], "num_checkpoints": [24, 24]},
        ...     index=["wbic", "validation_loss"])
        >>> print(verdict(frame).replace(". ", ".\\n"))
        wbic against downstream accuracy over 24 checkpoints: Pearson r = -0.80 [-0.90, -0.60].
        The claimed negative sign is seen and the interval excludes zero.
        The best of the other criteria is validation_loss, r = -0.20 [-0.50, +0.20].
        wbic does better, and the two intervals do not overlap.
    """
    if criterion not in frame.index or method not in frame.columns:
        raise ValueError(
            f"frame lacks the row {criterion!r} or the column {method!r}; "
            f"it has rows {list(frame.index)} and columns {list(frame.columns)}"
        )

    def read(name: str) -> tuple[float, float, float]:
        low, high = f"{method}_low", f"{method}_high"
        value, low_end, high_end = frame.loc[name, [method, low, high]].to_numpy(float)
        return float(value), float(low_end), float(high_end)

    value, low, high = read(criterion)
    count = int(frame["num_checkpoints"][criterion])
    heading = f"{criterion} against {outcome} over {count} checkpoints: {method.capitalize()} r"
    if np.isnan(value):
        return f"{heading} is undefined: too few checkpoints, or a column that is constant."
    sentences = [f"{heading} = {value:+.2f} [{low:+.2f}, {high:+.2f}]."]
    if high < 0:
        sentences.append("The claimed negative sign is seen and the interval excludes zero.")
    elif low > 0:
        sentences.append(
            "The sign is the opposite of the claimed one and the interval excludes zero: "
            f"choosing the lowest {criterion} picks the worse checkpoints here."
        )
    else:
        sentences.append("Undecided: the interval contains zero.")
    others = frame[method].drop(criterion).dropna()
    if len(others):
        best = str(others.idxmin())
        other, other_low, other_high = read(best)
        better, apart = value < other, high < other_low or other_high < low
        sentences.append(
            f"The best of the other criteria is {best}, "
            f"r = {other:+.2f} [{other_low:+.2f}, {other_high:+.2f}]."
        )
        sentences.append(
            f"{criterion} does {'better' if better else 'no better'}, "
            + (
                "and the two intervals do not overlap."
                if apart
                else "but the two intervals overlap, so these checkpoints do not settle it."
            )
        )
    return " ".join(sentences)
