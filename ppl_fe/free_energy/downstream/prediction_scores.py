"""How good predictions are: accuracy of classes, rank correlation of numbers."""

from __future__ import annotations

from math import nan, sqrt
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata
from torch import Tensor

from ppl_fe.free_energy.downstream.jackknife import jackknife_error
from ppl_fe.free_energy.downstream.labels import is_classes


class Measured(NamedTuple):
    """A number, and its standard error over the labels."""

    value: float
    error: float

    @classmethod
    def mean(cls, values: Tensor) -> Measured:
        """Average values (N,), one a label."""
        count, each = len(values), values.double()
        error = sqrt(float(each.var(correction=1)) / count) if count > 1 else nan
        return cls(float(each.mean()), error)


def score(predictions: Tensor, targets: Tensor) -> Measured:
    """Score predictions: the share of classes that are right, or Spearman's rank correlation.

    Args:
        predictions: (N,) classes, or (N, ...) numbers in the targets' shape or any that fits.
        targets: (N,) integer classes, or (N, ...) numbers; of several columns the mean is taken.

    Example:
        >>> import torch
        >>> score(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 1, 1, 0])).value
        0.75
        >>> score(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([0.1, 0.2, 0.3])).value
        1.0
    """
    if is_classes(targets):
        return Measured.mean(predictions == targets)
    given = predictions.reshape(targets.shape)
    return Measured(
        rank_correlation(given, targets),
        jackknife_error(lambda rows: rank_correlation(given[rows], targets[rows]), len(targets)),
    )


def rank_correlation(predictions: Tensor, targets: Tensor) -> float:
    """Compute Spearman's correlation, the mean over columns; 0 where either side is constant."""
    found = []
    pairs = (values.detach().double().reshape(len(values), -1) for values in (predictions, targets))
    for x, y in zip(*(values.cpu().numpy().T for values in pairs), strict=True):
        u, v = (rank - rank.mean() for rank in (rankdata(x), rankdata(y)))
        size = float(np.sqrt((u @ u) * (v @ v)))
        found.append(float(u @ v) / size if size > 0 else 0.0)
    return float(np.mean(found))
