"""Neural collapse: how small the classes are in feature space beside their distances."""

from __future__ import annotations

import torch
from torch import Tensor


def neural_collapse(features: Tensor, targets: Tensor) -> float:
    """Compute the class-distance normalised variance (Galanti, György & Hutter 2022).

    For two classes V = (Var_i + Var_j) / (2 ‖μ_i − μ_j‖²), with Var the mean squared distance to
    the class mean μ; 0 when every class has collapsed to a point. Of more classes it is the mean
    over pairs.

    Args:
        features: (N, F).
        targets: integer classes, (N,).

    Returns:
        The mean of V over the pairs of classes present; infinite if two classes with spread share
        a mean.

    Raises:
        ValueError: the targets are no integers of shape (N,) or hold a single class.

    Example:
        >>> x = torch.tensor([[-1.0], [1.0], [9.0], [11.0]])
        >>> neural_collapse(x, torch.tensor([0, 0, 1, 1]))
        0.01
    """
    if targets.is_floating_point() or targets.shape != (len(features),):
        raise ValueError(
            f"targets are {targets.dtype} of shape {tuple(targets.shape)}; "
            f"neural collapse needs integer classes of shape ({len(features)},)"
        )
    classes = sorted(set(targets.tolist()))
    if len(classes) < 2:
        raise ValueError(f"targets hold {len(classes)} class; neural collapse compares two or more")
    members = [features.detach()[targets == c].double() for c in classes]
    means = torch.stack([x.mean(0) for x in members])
    variances = torch.stack([(x - x.mean(0)).square().sum(1).mean() for x in members])
    i, j = torch.triu_indices(len(classes), len(classes), offset=1)
    distances = (means[i] - means[j]).square().sum(1)
    return ((variances[i] + variances[j]) / (2 * distances)).mean().item()
