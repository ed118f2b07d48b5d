"""LogME: how much evidence the labels give to a linear regression on the features."""

from __future__ import annotations

from math import log, pi

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor

from ppl_fe.free_energy.downstream.labels import as_numbers

DECADES = 10.0  # of the ratio of the two precisions, below and above the features' own size
GRID = 81


def logme(features: Tensor, targets: Tensor) -> float:
    """Compute the largest log evidence a datum of y = Fw + noise (You et al. 2021, LogME).

    w ~ N(0, I/α), noise ~ N(0, I/β), y a column for each class present (0 or 1) or each number:

        max_{α, β} log N(y; 0, I/β + FFᵀ/α) / n,     the mean over columns.

    β has a closed form at each α/β, so that one dimension is left, which is searched on a grid and
    then to the end; the published fixed-point iteration goes to the same place. A larger value is
    claimed to mean a better transfer.

    Args:
        features: (N, F).
        targets: (N,) integer classes, or (N, ...) numbers.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> features, labels = torch.randn(60, 4), torch.arange(60) % 2
        >>> logme(features + 3 * labels[:, None], labels) > logme(features, labels)
        True
    """
    f = features.detach().double().cpu()
    u, s, _ = torch.linalg.svd(f, full_matrices=False)
    sizes = s.square().numpy()
    columns = as_numbers(targets).cpu()
    columns = columns[:, columns.abs().sum(0) > 0]  # of a class without labels nothing is known
    projected = (u.T @ columns).square().numpy()
    rest = columns.square().sum(0).numpy() - projected.sum(0)
    found = [
        _evidence(sizes, projected[:, k], max(float(rest[k]), 0.0), len(f))
        for k in range(columns.shape[1])
    ]
    return float(np.mean(found))


def _evidence(
    sizes: NDArray[np.float64], projected: NDArray[np.float64], rest: float, count: int
) -> float:
    """Maximise log N(y; 0, (I + FFᵀ/t)/β) / n over t = α/β and β, given the squares of Uᵀy."""

    def negative(log_t: float) -> float:
        stretched = 1 + sizes / np.exp(log_t)
        noise = (float((projected / stretched).sum()) + rest) / count  # 1/β, at its optimum
        return 0.5 * (log(2 * pi * max(noise, 1e-300)) + float(np.log(stretched).sum()) / count + 1)

    middle = log(max(float(sizes.max()), 1e-300))
    reach = DECADES * log(10)
    grid = np.linspace(middle - reach, middle + reach, GRID)
    best = int(np.argmin([negative(at) for at in grid]))
    bounds = grid[max(best - 1, 0)], grid[min(best + 1, GRID - 1)]
    found = minimize_scalar(negative, bounds=bounds, method="bounded", options={"xatol": 1e-10})
    return -min(float(found.fun), negative(grid[best]))
