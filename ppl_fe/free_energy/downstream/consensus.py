"""Several criteria in one order: how far down their lists a checkpoint stands in the mean.

Criteria err in different ways: −log Z by its chains and its prior, a probe by the labels that it
happens to see, PACTran by its bound. So the mean of their places (Borda's count) is steadier than
any one of them, and asks for no common unit. Those count that ask for the labels themselves:

- the free energy, where its chains mixed;
- the predictions of a trained head, by score and by loss, and those of the linearised network;
  where the head is fresh the linearised free energy, a probe, left out one by one, and PACTran, the
  bound on its loss, in their place.

LogME, kNN and cross-validated fine-tunes stand beside it: docs/pages/few_labels.md has the trials.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from ppl_fe.free_energy.downstream.criteria import VOTERS
from ppl_fe.free_energy.downstream.recommendation import oriented, trusted

NUM_REDRAWN = 2_000


def consensus(
    table: pd.DataFrame, criteria: tuple[str, ...], *, fresh_head: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the consensus of every checkpoint and its standard error.

    The consensus is the mean over criteria of the share of the checkpoints that are ahead, ties by
    halves: 0 for one that all put first, near 1 for one that all put last. Its error is the
    standard deviation of that over 2,000 draws of all values within their own errors.

    Args:
        table: one row a checkpoint, with the criteria's columns and their errors.
        criteria: all that were computed.
        fresh_head: whether the checkpoints' head is fresh, which says whose votes count.

    Returns:
        Both (M,), NaN of a checkpoint that nothing can be said of.

    Example:
        >>> table = pd.DataFrame({
        ...     "zero_shot_loss": [1.0, 2.0], "zero_shot_score": [0.9, 0.8],
        ...     "zero_shot_loss_error": [0.0, 0.0], "zero_shot_score_error": [0.0, 0.0]})
        >>> value, _ = consensus(table, ("zero_shot_loss", "zero_shot_score"), fresh_head=False)
        >>> value.tolist()
        [0.0, 0.5]
    """
    voters = [name for name in VOTERS[fresh_head] if name in criteria]
    generator = np.random.default_rng(0)
    # The values as they are, then redrawn.
    places = np.full((len(voters), 1 + NUM_REDRAWN, len(table)), np.nan)
    for vote, name in zip(places, voters, strict=True):
        good = trusted(table, name).to_numpy()
        values = oriented(table, name).to_numpy()[good]
        errors = np.nan_to_num(table[f"{name}_error"].to_numpy(float)[good])
        noise = generator.standard_normal((1 + NUM_REDRAWN, len(values)))
        noise[0] = 0.0
        vote[:, good] = (rankdata(values + errors * noise, axis=1) - 1) / max(1, len(values))
    votes = np.isfinite(places).sum(0)
    mean = np.where(votes > 0, np.nansum(places, 0) / np.maximum(votes, 1), np.nan)
    return mean[0], mean[1:].std(0)
