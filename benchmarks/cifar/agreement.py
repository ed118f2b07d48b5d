"""How well a criterion agrees with an outcome when checkpoints come in few configurations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from ppl_fe.demo.transfer import Transfer
from ppl_fe.free_energy.correlation import correlations

Array = NDArray[Any]
NUM_RESAMPLES = 2000


def paired_errors(table: pd.DataFrame, outcome: str, folder: Path) -> pd.Series:
    """Standard error of each checkpoint's distance from the average, from the saved accuracies.

    All checkpoints meet the same episodes, so what an episode does to all of them cancels.
    """
    reached = table[table["training_loss"].notna()]
    parts = [
        torch.load(folder / f"{name}_{outcome}.pt".replace(" ", "_"))
        for name in reached["configuration"].unique()
    ]
    return pd.Series(Transfer(torch.cat(parts)).paired_error.numpy(), reached.index)


def reliability(values: pd.Series, errors: pd.Series) -> float:
    """Share of the variance over checkpoints that is not measurement error, in [0, 1].

    No criterion can correlate with the measured values better than the root of this.
    """
    spread = float(values.var())
    return max(0.0, 1 - float((errors**2).mean()) / spread) if spread > 0 else float("nan")


def clustered_interval(
    columns: Array, labels: Array, statistic: Callable[[Array], float], seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap that resamples whole configurations.

    Seeds of one configuration resemble each other, so an interval that takes checkpoints as
    independent is too narrow for a statement about configurations.

    Args:
        columns: (k, M), what the statistic reads; M checkpoints.
        labels: (M,), the configuration of each.
        statistic: (k, any number of checkpoints) -> a number.
    """
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    generator = np.random.default_rng(seed)
    values = []
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample may repeat one point
        for _ in range(NUM_RESAMPLES):
            chosen = generator.integers(len(members), size=len(members))
            rows = np.concatenate([members[k] for k in chosen])
            values.append(statistic(columns[:, rows]))
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def clustered_correlations(
    table: pd.DataFrame, criteria: Sequence[str], outcome: str
) -> pd.DataFrame:
    """As `correlations` (Pearson), its intervals over whole configurations."""
    frame = correlations(table, criteria, outcome, method=["pearson"])
    for name in frame.index[frame["pearson"].notna()]:
        columns, labels = _columns(table, [name, outcome])
        low, high = clustered_interval(columns, labels, _pearson)
        frame.loc[name, ["pearson_low", "pearson_high"]] = low, high
    return frame


def beyond(table: pd.DataFrame, criterion: str, control: str, outcome: str) -> pd.Series:
    """Partial Pearson correlation of criterion and outcome given the control, clustered."""
    columns, labels = _columns(table, [criterion, outcome, control])

    def partial(rows: Array) -> float:
        r, c, o = np.corrcoef(rows)[[0, 0, 1], [1, 2, 2]]
        return float((r - c * o) / np.sqrt((1 - c * c) * (1 - o * o)))

    low, high = clustered_interval(columns, labels, partial)
    return pd.Series({"pearson": partial(columns), "pearson_low": low, "pearson_high": high})


def _columns(table: pd.DataFrame, names: list[str]) -> tuple[Array, Array]:
    used = table.dropna(subset=names)
    return used[names].to_numpy(float).T, pd.factorize(used["configuration"])[0]


def _pearson(rows: Array) -> float:
    return float(np.corrcoef(rows)[0, 1])
