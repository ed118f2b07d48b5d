"""Labels of a task: as numbers to regress on, and in folds that share them out evenly."""

from __future__ import annotations

import torch
from torch import Tensor


def is_classes(targets: Tensor) -> bool:
    """Say whether targets are classes, (N,) integers, and not numbers.

    Example:
        >>> is_classes(torch.tensor([0, 1])), is_classes(torch.tensor([0.0, 1.0]))
        (True, False)
    """
    return targets.ndim == 1 and not targets.is_floating_point()


def classes_of(targets: Tensor) -> Tensor:
    """Give the classes present, in rising order.

    Example:
        >>> classes_of(torch.tensor([7, 3, 7]))
        tensor([3, 7])
    """
    found: Tensor = torch.unique(targets)
    return found


def as_numbers(targets: Tensor) -> Tensor:
    """Give targets as float64 columns (N, K): one for each class present, or the numbers.

    Example:
        >>> as_numbers(torch.tensor([3, 7, 3]))
        tensor([[1., 0.],
                [0., 1.],
                [1., 0.]], dtype=torch.float64)
    """
    if is_classes(targets):
        return (targets[:, None] == classes_of(targets)).double()
    return targets.double().reshape(len(targets), -1)


def folds(targets: Tensor, count: int) -> Tensor:
    """Deal the rows out to folds, (N,) integers below `count`, each with its share of every label.

    Rows are dealt in the order of their labels (the first column of several), so that a fold has as
    many of each class, or as many large and small numbers, as the others up to one.

    Example:
        >>> folds(torch.tensor([0, 0, 1, 1, 1, 0]), 2)
        tensor([0, 1, 1, 0, 1, 0])
    """
    order = targets.reshape(len(targets), -1)[:, 0].argsort(stable=True)
    found = torch.empty(len(targets), dtype=torch.long)
    found[order.cpu()] = torch.arange(len(targets)) % min(count, len(targets))
    return found


def refuse_constant(targets: Tensor) -> None:
    """Refuse labels that are all alike, which no criterion can say anything of.

    Raises:
        ValueError: one class alone, or numbers that are all the same.

    Example:
        >>> refuse_constant(torch.tensor([2, 2]))
        Traceback (most recent call last):
        ValueError: downstream: all 2 labels are of class 2; give examples of two classes or more
    """
    if not bool((targets == targets[:1]).all()):
        return
    count, first = len(targets), targets.reshape(len(targets), -1)[0, 0].item()
    if is_classes(targets):
        raise ValueError(
            f"downstream: all {count} labels are of class {first}; give examples of two classes or "
            "more"
        )
    raise ValueError(
        f"downstream: all {count} targets are {first:g}; there is nothing to predict: give targets "
        "that differ"
    )
