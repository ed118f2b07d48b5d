"""Whether a ranking is more than the luck of the chains that made it."""

from __future__ import annotations

from ppl_fe.finetuning.stage_one import Scores

LEAST_RELIABLE = 0.5


def chance_notes(found: Scores) -> list[str]:
    """A note if another seed would select other parameters, however small R-hat is.

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
    """1 − mean(MCSE²)/variance of the scores: the correlation to expect of two runs' scores.

    Chains that agree on every scale have R-hat 1, and the largest of equal scales are still those
    of the luckiest parameters. This share, the reliability of Spearman (1904), is 0 then, and 1
    without Monte Carlo error; of few parameters it may come out below 0. None without MCSE.

    Paper: The proof and measurement of association between two things, Am. J. Psychol. 1904.

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
