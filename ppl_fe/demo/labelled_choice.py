"""Choose among the checkpoints with a few labels of the task, and say what the choice was worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ppl_fe.demo.digits import NUM_CLASSES, Task
from ppl_fe.demo.pretraining import digits_network
from ppl_fe.demo.transfer import episodes
from ppl_fe.free_energy.downstream.choice import choose_checkpoint

# A bound on a linear probe of the features: one pass over the labels. Of the criteria that
# benchmarks/few_labels.py holds against fine-tuning elsewhere it told these networks apart best.
CRITERION, NEW = "pactran", "new classes"
SHOTS = 5
NUM_LABELS = SHOTS * NUM_CLASSES


def choose(checkpoints: Mapping[str, Mapping[str, Tensor]], task: Task, *, seed: int) -> pd.Series:
    """Give each checkpoint its criterion on a few labelled images of the task.

    Args:
        checkpoints: name -> state dict.
        task: its pool of images, from which five of each class are drawn.
        seed: of that draw.

    Returns:
        The criterion by name, the chosen checkpoint (lowest) first.

    Example:
        >>> images = torch.eye(64)[torch.arange(60) % 5]
        >>> task = Task(images, torch.arange(60) % 5)
        >>> _ = torch.manual_seed(0)
        >>> found = choose({"a": digits_network().state_dict()}, task, seed=0)
        >>> list(found.index)
        ['a']
    """
    generator = torch.Generator().manual_seed(seed)
    (labelled, *_), _ = episodes(task.labels, SHOTS, 1, generator)
    table = choose_checkpoint(
        {name: dict(state) for name, state in checkpoints.items()},
        digits_network(),
        (task.images[labelled], task.labels[labelled]),
        criteria=[CRITERION],
        by=CRITERION,
        seed=seed,
        progress_bar=False,
    )
    return table[CRITERION]


def worth(table: pd.DataFrame, outcome: str, pearson: Mapping[Any, float]) -> str:
    """Say what the choice was worth, and what the criterion without labels would have cost.

    Args:
        table: one row a checkpoint, with both criteria and the outcome.
        outcome: the column of accuracies in other episodes.
        pearson: criterion -> its correlation with the outcome.

    Example:
        >>> table = pd.DataFrame(
        ...     {"pactran": [2.0, 1.0], "wbic": [3.0, 4.0], "new": [0.7, 0.75]}, index=["a", "b"])
        >>> worth(table, "new", {"pactran": -1.0, "wbic": 0.9})[:64]
        'With 25 labels of new, pactran chooses b: 75.0 % in other episod'
    """
    accuracy = 100 * table[outcome]
    chosen, without = str(table[CRITERION].idxmin()), str(table["wbic"].idxmin())
    loss = accuracy[chosen] - accuracy[without]
    return (
        f"With {NUM_LABELS} labels of {outcome}, {CRITERION} chooses {chosen}: "
        f"{accuracy[chosen]:.1f} % in other episodes, where the best of {len(table)} has "
        f"{accuracy.max():.1f} %, the worst {accuracy.min():.1f} % and a choice at random "
        f"{accuracy.mean():.1f} %. The lowest wbic is {without}: {accuracy[without]:.1f} %, which "
        f"is {abs(loss):.1f} points {'less' if loss >= 0 else 'more'}. wbic was not asked, as it "
        "has seen nothing of the task: where both are claimed to be low for good ones, its r with "
        f"the accuracy is {pearson['wbic']:+.2f}, and that of {CRITERION} "
        f"{pearson[CRITERION]:+.2f}."
    )
