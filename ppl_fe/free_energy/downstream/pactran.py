"""PACTran: a PAC-Bayes bound on the loss of a linear probe."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_fe.free_energy.downstream.labels import is_classes
from ppl_fe.l_bfgs import l_bfgs

REGULARIZATION = 1.0  # λ of the authors' release, in units of n
PRIOR_VARIANCE = 10.0  # σ₀² of theirs that goes with it, in units of 1/F


def pactran(features: Tensor, targets: Tensor) -> float:
    """Compute the Gaussian PACTran of a classification (Ding et al. 2022).

    With centred features, a softmax layer θ = (W, b) and λ' = λn,

        min_θ L(θ) + ‖W‖²/(2λ')  +  (FK σ₀²/(2λ')) · log(λ' tr H/(FK)),

    L the mean cross-entropy, K classes, and tr H = Σ_{k} [Σ_i p_ik(1 − p_ik)(1 + ‖f_i‖²) + F/λ'] at
    the optimum, as in the authors' release with λ = 1 and σ₀² = 10/F. A lower value is claimed to
    mean a better transfer.

    Args:
        features: (N, F).
        targets: (N,) integer classes.

    Raises:
        ValueError: targets that are no classes.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> features, labels = torch.randn(60, 4), torch.arange(60) % 2
        >>> pactran(features + 3 * labels[:, None], labels) < pactran(features, labels)
        True
    """
    if not is_classes(targets):
        raise ValueError("pactran needs integer classes; for numbers take ridge_score or logme")
    f = features.detach().double()
    f = f - f.mean(0)
    places = torch.unique(targets, return_inverse=True)[1]
    (count, size), classes = f.shape, int(places.max()) + 1
    weight = REGULARIZATION * count

    def objective(theta: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        layer = torch.tensor(theta, dtype=torch.float64).reshape(size + 1, classes)
        logits = f @ layer[:size] + layer[size]
        loss = torch.nn.functional.cross_entropy(logits, places)
        slope = (logits.softmax(1) - torch.nn.functional.one_hot(places, classes)) / count
        gradient = torch.cat([f.T @ slope + layer[:size] / weight, slope.sum(0, keepdim=True)])
        value = loss + layer[:size].square().sum() / (2 * weight)
        return value.item(), gradient.flatten().numpy()

    found = l_bfgs(
        objective,
        np.zeros((size + 1) * classes),
        most_iterations=1000,
        least_fall=1e-14,
        least_slope=1e-9,
    )
    layer = torch.tensor(found.x).reshape(size + 1, classes)
    p = (f @ layer[:size] + layer[size]).softmax(1)
    spread = (p * (1 - p)).sum(1)
    trace = float((spread * (1 + f.square().sum(1))).sum()) + size * classes / weight
    prior = PRIOR_VARIANCE / size
    penalty = 0.5 * size * classes / weight * prior * np.log(trace * weight / (size * classes))
    return float(found.fun + penalty)
