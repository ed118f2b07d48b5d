"""Whether the chains of stage 1 agree on what parameters are ranked by."""

from __future__ import annotations

from torch import Tensor

from ppl_fe.finetuning.sampling_plan import Plan
from ppl_fe.finetuning.scoring import LARGE_SHARE, Scores

GOOD_R_HAT = 1.1


def mixing_notes(found: Scores, mask: Tensor, plan: Plan, num_data: int) -> list[str]:
    """A note if they do not, of the scores above the median or of those selected.

    Both count, since the selected ones may be too few to show among the others.

    Args:
        found: scores (D,) and their R-hat, if it was measured.
        mask: (D,) bool, the selected ones.
        plan: how the chains ran.
        num_data: n.
    """
    if found.r_hat is None:
        return []
    bad, above = found.r_hat > GOOD_R_HAT, found.score > found.score.nanmedian()
    shares = {
        "above the median": bad[above].float().mean().item(),
        "selected": bad[mask].float().mean().item(),
    }
    told = [
        f"{100 * share:.3g} % of those {where}"
        for where, share in shares.items()
        if share > LARGE_SHARE
    ]
    if not told:
        return []
    advice = "raise warmup_steps and num_samples"
    if "prior" in found.settings and plan.batch_size < num_data:
        # Every site of such a prior feels the noise of minibatches; the steps become tiny.
        advice = f"take all the data in every step (batch_size=None), or {advice}"
    worst = found.r_hat[above | mask].nan_to_num(0).max().item()
    return [
        f"R-hat of {found.what} exceeds {GOOD_R_HAT} in {' and '.join(told)}, up to {worst:.2f}: "
        f"{advice} above {plan.warmup_steps} + {plan.num_samples} x {plan.thinning} steps, or "
        f"num_chains above {plan.num_chains}"
    ]


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
