"""Whether the chains of stage 1 agree on what parameters are ranked by."""

from __future__ import annotations

from torch import Tensor

from ppl_fe.finetuning.scale_plan import Plan
from ppl_fe.finetuning.stage_one import LARGE_SHARE, Scores

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
