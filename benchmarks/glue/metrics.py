"""The metrics of GLUE and SuperGLUE, from outputs (N, K) or (N,) and targets (N,)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import spearmanr
from torch import Tensor

Metric = Callable[[Tensor, Tensor], float]


def accuracy(output: Tensor, targets: Tensor) -> float:
    """Share of the rows whose largest logit is the target's.

    Example:
        >>> import torch
        >>> accuracy(torch.eye(2), torch.tensor([0, 0]))
        0.5
    """
    return float((output.argmax(-1) == targets).double().mean())


def counts(output: Tensor, targets: Tensor) -> tuple[int, int, int, int]:
    """True positives, false positives, false negatives, true negatives of class 1."""
    found, true = output.argmax(-1) == 1, targets == 1
    pairs = ((found, true), (found, ~true), (~found, true), (~found, ~true))
    both = [int((one & other).sum()) for one, other in pairs]
    return both[0], both[1], both[2], both[3]


def f1(output: Tensor, targets: Tensor) -> float:
    """2 TP / (2 TP + FP + FN) of class 1; 0 where there is no positive of any kind.

    Example:
        >>> import torch
        >>> round(f1(torch.eye(2)[[1, 1, 0]], torch.tensor([1, 0, 0])), 4)
        0.6667
    """
    tp, fp, fn, _ = counts(output, targets)
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0


def matthews(output: Tensor, targets: Tensor) -> float:
    """Matthews' correlation of two classes; 0, as is usual, where one side is constant.

    Example:
        >>> import torch
        >>> matthews(torch.eye(2)[[1, 1, 0, 0]], torch.tensor([1, 1, 0, 0]))
        1.0
        >>> matthews(torch.eye(2)[[1, 1]], torch.tensor([1, 0]))
        0.0
    """
    tp, fp, fn, tn = counts(output, targets)
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return float((tp * tn - fp * fn) / product**0.5) if product else 0.0


def pearson(output: Tensor, targets: Tensor) -> float:
    """Pearson's correlation; 0 where the output is constant, which says nothing of the targets."""
    x, y = output.flatten().double().numpy(), targets.double().numpy()
    return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) > 0 else 0.0


def spearman(output: Tensor, targets: Tensor) -> float:
    """Spearman's rank correlation, ties averaged; 0 where the output is constant."""
    x, y = output.flatten().double().numpy(), targets.double().numpy()
    return float(spearmanr(x, y).statistic) if np.ptp(x) > 0 else 0.0


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}


def measure(names: tuple[str, ...], output: Tensor, targets: Tensor) -> dict[str, float]:
    """All metrics of a task; the first named is the one that rules are compared by.

    Example:
        >>> import torch
        >>> measure(("accuracy", "f1"), torch.eye(2), torch.tensor([0, 1]))
        {'accuracy': 1.0, 'f1': 1.0}
    """
    return {name: METRICS[name](output.cpu(), targets.cpu()) for name in names}
