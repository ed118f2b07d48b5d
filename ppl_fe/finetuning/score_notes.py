"""What to doubt about scores: whether chains agree on them, and whether luck alone ranks them.

The two fail independently. Chains may disagree on scales that differ a great deal, and then
`agreement_notes` says so. And chains may agree on scales that are all the same, R-hat 1 everywhere:
the largest are then those of the luckiest parameters, and `chance_notes` says so.
"""

from __future__ import annotations

from torch import Tensor

from ppl_fe.diagnostics.checks.mixing import mixing_notes_of_many
from ppl_fe.finetuning.scoring import Scores

LEAST_RELIABLE = 0.5


def agreement_notes(found: Scores, mask: Tensor) -> list[str]:
    """Note if chains disagree on the scores above the median, or on those selected.

    Both count, since the selected ones may be too few to show among the others.

    Args:
        found: scores (D,) and their R-hat, if it was measured.
        mask: (D,) bool, the selected ones.
    """
    if found.r_hat is None:
        return []
    above = found.score > found.score.nanmedian()
    parts = {"above the median": above.cpu().numpy(), "selected": mask.cpu().numpy()}
    remedy = found.remedy
    if found.probability_in_top is not None:
        remedy += ", before probability_in_top is believed of those"
    return mixing_notes_of_many(found.r_hat.cpu().numpy(), parts, found.what, remedy)


def chance_notes(found: Scores) -> list[str]:
    """Note if another seed would select other parameters, however small R-hat is.

    Args:
        found: scores (D,) and their MCSE, if it was measured.
    """
    share = reliability(found)
    if share is None or share >= LEAST_RELIABLE:
        return []
    return [
        f"{100 * (1 - max(0.0, share)):.0f} % of the variance of {found.what} between parameters "
        "is Monte Carlo error: another seed would select others. Raise num_samples; where that "
        "does not help, the data tell the parameters apart too little at this data_size"
    ]


def reliability(found: Scores) -> float | None:
    """Estimate 1 − mean(MCSE²)/variance of the scores: the correlation of two runs' scores.

    It is 1 without Monte Carlo error and 0 where the scores differ by it alone; of few parameters
    it may come out below 0. This is the reliability of Spearman (1904).

    Paper: The proof and measurement of association between two things, Am. J. Psychol. 1904.

    Args:
        found: scores (D,) and their MCSE.

    Returns:
        The share, or None without MCSE or without any difference between the scores.

    Example:
        >>> import torch
        >>> reliability(Scores(torch.tensor([1.0, 2.0, 3.0]), mcse=torch.full((3,), 0.5)))
        0.75
    """
    if found.mcse is None:
        return None
    known = found.score.isfinite() & found.mcse.isfinite()
    variance = found.score[known].double().var()
    if not variance > 0:
        return None
    return 1 - (found.mcse[known].double().square().mean() / variance).item()
