"""How well a criterion agrees with an outcome when checkpoints come in few configurations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ppl_fe.demo.transfer import Transfer
from ppl_fe.free_energy.correlation import correlations

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
    table: pd.DataFrame, statistic: Callable[[pd.DataFrame], float], seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap that resamples whole configurations.

    Seeds of one configuration resemble each other, so an interval that takes checkpoints as
    independent is too narrow for a statement about configurations.
    """
    groups = [frame for _, frame in table.groupby("configuration", sort=False)]
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(NUM_RESAMPLES):
        chosen = generator.integers(len(groups), size=len(groups))
        with np.errstate(invalid="ignore", divide="ignore"):
            values.append(statistic(pd.concat([groups[k] for k in chosen])))
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def clustered_correlations(
    table: pd.DataFrame, criteria: Sequence[str], outcome: str
) -> pd.DataFrame:
    """As `correlations` (Pearson), its intervals over whole configurations."""
    frame = correlations(table, criteria, outcome, method=["pearson"])
    for name in frame.index[frame["pearson"].notna()]:
        low, high = clustered_interval(
            table[[name, outcome, "configuration"]], lambda rows: _pearson(rows, name, outcome)
        )
        frame.loc[name, ["pearson_low", "pearson_high"]] = low, high
    return frame


def beyond(table: pd.DataFrame, criterion: str, control: str, outcome: str) -> pd.Series:
    """Partial Pearson correlation of criterion and outcome given the control, clustered."""
    used = table[["configuration", criterion, control, outcome]].dropna()

    def partial(rows: pd.DataFrame) -> float:
        c, o = _pearson(rows, criterion, control), _pearson(rows, control, outcome)
        left = (1 - c * c) * (1 - o * o)
        return float((_pearson(rows, criterion, outcome) - c * o) / np.sqrt(left))

    low, high = clustered_interval(used, partial)
    return pd.Series({"pearson": partial(used), "pearson_low": low, "pearson_high": high})


def _pearson(rows: pd.DataFrame, first: str, second: str) -> float:
    return float(np.corrcoef(rows[first].to_numpy(float), rows[second].to_numpy(float))[0, 1])
