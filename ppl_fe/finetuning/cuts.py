"""Where a ranking is cut: the scores of parameters to the mask of the selected ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ppl_fe.finetuning.knees import find_knees


def number_to_select(sparsity: object, ranked: int, method: str) -> int | None:
    """round(p·D) of the D ranked parameters, or None for "knee".

    Raises:
        ValueError: no share, or one that selects nothing or everything.

    Example:
        >>> number_to_select(0.005, 1000, "bayestune")
        5
    """
    if sparsity == "knee" or method == "bias_only":
        return None
    if isinstance(sparsity, bool | str) or not isinstance(sparsity, float | int):
        raise ValueError(f"sparsity must be a number in (0, 1) or 'knee', got {sparsity!r}")
    if not 0 < sparsity < 1:
        raise ValueError(f"sparsity must lie between 0 and 1, a share, got {sparsity!r}")
    count = round(sparsity * ranked)
    if not 0 < count < ranked:
        raise ValueError(
            f"sparsity={sparsity} of {ranked} parameters selects {count}; one parameter is "
            f"{1 / ranked:.2g}, all but one {1 - 1 / ranked:.4g}"
        )
    return count


def cut(score: Tensor, kept: Tensor, count: int | None, threshold: float | None) -> Tensor:
    """(D,) bool: scores above the threshold, or the `count` largest, or those before the knee.

    Args:
        score: (D,), NaN where `kept` is False.
        kept: (D,) bool, the entries outside the head.
        count: how many, or None for "knee"; it does not matter where there is a threshold.
        threshold: select scores above it.

    Raises:
        ValueError: a threshold that selects nothing or everything; no knee.

    Example:
        >>> cut(torch.tensor([0.1, 0.4, 0.2]), torch.ones(3, dtype=torch.bool), 1, None)
        tensor([False,  True, False])
    """
    ranked = int(kept.sum())
    if threshold is not None:
        mask = score > threshold  # NaN, of the head, is not
        above = int(mask.sum())
        if not 0 < above < ranked:
            inside = score[kept.to(score.device)]
            raise ValueError(
                f"threshold={threshold:g} selects {'everything' if above else 'nothing'}, {above} "
                f"of {ranked}; scores run from {inside.min().item():.3g} to "
                f"{inside.max().item():.3g}"
            )
        return mask
    if count is None:
        inside = score[kept.to(score.device)].sort(descending=True).values
        knees = find_knees(inside.double().cpu().numpy())
        if not knees:
            raise ValueError(
                "sparsity='knee': the sorted scores have no bend, so they do not say how many "
                "parameters to select; give a number"
            )
        count = knees[0]
    return largest(score, count)


def outside(slices: Mapping[str, slice], head: tuple[str, ...]) -> Tensor:
    """(D,) bool: the entries outside the head.

    Example:
        >>> outside({"body": slice(0, 1), "head": slice(1, 3)}, ("head",))
        tensor([ True, False, False])
    """
    kept = torch.ones(max(where.stop for where in slices.values()), dtype=torch.bool)
    for name in head:
        kept[slices[name]] = False
    return kept


def largest(score: Tensor, count: int) -> Tensor:
    """(D,) bool: exactly `count` entries of largest score; of equal ones those that come first.

    NaN counts as smaller than any number.

    Example:
        >>> largest(torch.tensor([1.0, 2.0, 1.0, float("nan")]), 2)
        tensor([ True,  True, False, False])
    """
    score = score.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    least = torch.kthvalue(score, len(score) - count + 1).values
    mask = score > least
    ties = (score == least).nonzero()[:, 0]
    mask[ties[: count - int(mask.sum())]] = True
    return mask
