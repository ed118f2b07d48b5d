"""How well a criterion agrees with an outcome when checkpoints come in few configurations."""

from __future__ import annotations

from collections.abc import Sequence
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


def clustered_correlations(
    table: pd.DataFrame, criteria: Sequence[str], outcome: str
) -> pd.DataFrame:
    """As `correlations` (Pearson), its intervals from resampling whole configurations.

    Seeds of one configuration resemble each other, so an interval that takes checkpoints as
    independent is too narrow for a statement about configurations.
    """
    frame = correlations(table, criteria, outcome, method=["pearson"])
    for name in frame.index[frame["pearson"].notna()]:
        (x, y), weights = _columns(table, [name, outcome])
        ends = np.nanquantile(_pearson(x, y, weights)[1:], [0.025, 0.975])
        frame.loc[name, ["pearson_low", "pearson_high"]] = ends
    return frame


def beyond(table: pd.DataFrame, criterion: str, control: str, outcome: str) -> pd.Series:
    """Partial Pearson correlation of criterion and outcome given the control, as above."""
    (x, y, z), weights = _columns(table, [criterion, outcome, control])
    xy, xz, yz = (_pearson(*pair, weights) for pair in ((x, y), (x, z), (y, z)))
    with np.errstate(invalid="ignore", divide="ignore"):
        partial = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    low, high = np.nanquantile(partial[1:], [0.025, 0.975])
    return pd.Series({"pearson": partial[0], "pearson_low": low, "pearson_high": high})


def _columns(table: pd.DataFrame, names: list[str]) -> tuple[Array, Array]:
    """The columns (k, M) and how often each of M checkpoints counts in each resample (1 + R, M).

    The first row counts each checkpoint once: the data themselves.
    """
    used = table.dropna(subset=names)
    labels, configurations = pd.factorize(used["configuration"])
    number = len(configurations)
    drawn = np.random.default_rng(0).multinomial(number, np.full(number, 1 / number), NUM_RESAMPLES)
    weights = np.concatenate([np.ones((1, len(used))), drawn[:, labels]])
    return used[names].to_numpy(float).T, weights


def _pearson(x: Array, y: Array, weights: Array) -> Array:
    """Correlation under each row of weights (R, M): (R,). NaN where one column is constant."""
    share = weights / weights.sum(1, keepdims=True)
    x, y = x - x.mean(), y - y.mean()

    def covariance(a: Array, b: Array) -> Array:
        product: Array = share @ (a * b) - (share @ a) * (share @ b)
        return product

    with np.errstate(invalid="ignore", divide="ignore"):
        correlation: Array = covariance(x, y) / np.sqrt(covariance(x, x) * covariance(y, y))
    return correlation
