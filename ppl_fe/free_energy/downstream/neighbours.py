"""k nearest neighbours among the labelled examples, each left out of its own prediction."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_fe.free_energy.downstream.labels import classes_of, is_classes

NUM_NEIGHBOURS = 5


def neighbour_predictions(
    features: Tensor, targets: Tensor, num_neighbours: int = NUM_NEIGHBOURS
) -> Tensor:
    """Predict each label from its nearest neighbours in feature space, itself left out.

    Distances are between features of unit length (cosine). Classes are voted on, and among equals
    the one whose neighbours are nearer wins; numbers are averaged.

    Args:
        features: (N, F).
        targets: (N,) integer classes, or (N, ...) numbers.
        num_neighbours: k, 5 by default; N − 1 if that is less.

    Returns:
        Predictions in the targets' shape.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> neighbour_predictions(x, torch.tensor([0, 0, 1, 1]), 1)
        tensor([0, 0, 1, 1])
    """
    unit = torch.nn.functional.normalize(features.detach().double(), dim=1)
    likeness = unit @ unit.T
    likeness.fill_diagonal_(-torch.inf)
    count = min(num_neighbours, len(features) - 1)
    nearest = likeness.topk(count, dim=1).indices
    if not is_classes(targets):
        return targets[nearest].double().mean(1)
    classes = classes_of(targets)
    votes = (targets[nearest][..., None] == classes).double()  # (N, k, K)
    nearer = 1 - 1e-6 * torch.arange(count, device=votes.device)[:, None]
    return classes[(votes * nearer).sum(1).argmax(1)]
