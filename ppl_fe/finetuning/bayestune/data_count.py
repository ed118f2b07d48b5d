"""What the data count for in stage 1, N̂, and the reference point of its control variates.

N̂ comes from one pass over the data at the pretrained weights, a fresh head trained alone first:
through one as it was made, gradients say little about the weights before it. The first reference is
there, too, and where chains would come too late it is that network fine-tuned.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple

from torch import Tensor

from ppl_fe.data.sources import LoaderData
from ppl_fe.diverged import DivergedError
from ppl_fe.finetuning.bayestune.chance import MOSTLY_CHANCE, chance_among
from ppl_fe.finetuning.bayestune.control_variates import ControlVariates
from ppl_fe.finetuning.bayestune.grouped import Grouping, group_index
from ppl_fe.finetuning.bayestune.pulls import (
    Pulls,
    Sizes,
    least_of,
    measure_pulls,
    rows_of_a_pass,
    telling_weight,
)
from ppl_fe.finetuning.flat_weights import WorkingCopy
from ppl_fe.finetuning.objective import divided
from ppl_fe.finetuning.scoring import Task
from ppl_fe.finetuning.train.training import finetune
from ppl_fe.inference.run_plan import RunLength
from ppl_fe.networks.flat import FlatNetwork

GradientKind = Literal["auto", "minibatch", "control_variate"]

USUAL_SHARE = 0.005  # of the weights, where a threshold or the knee says how many are selected
HEAD_STEPS, HEAD_LEARNING_RATE = 100, 1e-2
NOISY = (
    "the noise of minibatches grows with data_size and has a part in the ranking; give "
    "gradient='control_variate', or batch_size=None for all the data in a step"
)

ROUNDING = "control variates difference gradients, and in that precision these are mostly rounding"


class DataCount(NamedTuple):
    """What `count_data` found.

    data_size: N̂.
    reference: of control variates; None for plain minibatches and for all the data in a step.
    notes: what to know about N̂.
    """

    data_size: float
    reference: ControlVariates | None = None
    notes: tuple[str, ...] = ()


def count_data(
    task: Task,
    data_size: float | Literal["auto"],
    gradient: GradientKind,
    beta: float,
    groups: Grouping | None,
    length: RunLength,
) -> DataCount:
    """Choose N̂ if it is "auto", and make the control variates if there are to be any.

    Args:
        task: the network, its data, how many weights may be selected.
        data_size: N̂, or "auto".
        gradient: "auto" takes control variates where N̂ is "auto" and comes out above n.
        beta: rate β of the scales' prior.
        groups: what has one scale.
        length: of a chain: a pass takes as many batches as it has steps at most, and where chains
            would come too late the network is fine-tuned for as many, and then a pass takes half
            as many.

    Raises:
        DivergedError: the loss or a gradient is not finite at the pretrained weights.
    """
    most, num_data = length.num_steps, task.source.num_data
    noisy = task.batch_size < num_data
    if data_size != "auto" and not (noisy and gradient == "control_variate"):
        many = noisy and data_size > num_data
        return DataCount(data_size, notes=(NOISY,) if many and gradient == "auto" else ())
    try:
        working = _at_pretrained(task)
        pulls = measure_pulls(working, task.source, task.batch_size, most, task.seed)
    except DivergedError as error:
        raise DivergedError(f"stage 1, at the pretrained weights: {error}") from error
    notes: tuple[str, ...] = ()
    if data_size == "auto":
        data_size, notes = _choose(task, pulls, beta, groups)
    wanted = gradient == "control_variate" or (gradient == "auto" and data_size > num_data)
    if not (noisy and wanted):
        return DataCount(data_size, None, notes)
    if task.objective.autocast is not None:
        notes += (f"autocast={task.objective.autocast} is left out: {ROUNDING}",)
    rows = rows_of_a_pass(task.source, task.batch_size, most)
    if rows < num_data:
        notes += (f"the gradient of all the data is that of {rows:,} of {num_data:,} rows",)

    def differentiate_all(share: float) -> Tensor:
        batches = max(1, round(share * most))
        again = partial(measure_pulls, working, task.source, task.batch_size, batches, task.seed)
        return again(halves=False).gradient

    fine_tune = partial(_fine_tuned, task, working, length.num_steps)
    reference = ControlVariates(working, pulls.gradient, differentiate_all, fine_tune)
    return DataCount(data_size, reference, notes)


def _at_pretrained(task: Task) -> WorkingCopy:
    """Make a copy of the pretrained network, its fresh head trained if it has one."""
    working = WorkingCopy(task.network, task.objective.in_full_precision)
    task.objective.check(working.module, task.source)
    if task.head_names:
        # A network that is not finite is told by its layer, before an optimiser says less of it.
        working.differentiate(next(divided(task.source, task.batch_size, task.seed)))
        how = {"head": task.head, "num_steps": HEAD_STEPS, "learning_rate": HEAD_LEARNING_RATE}
        working.weights.copy_(_before_the_chains(task, task.network, method="head", **how))
    return working


def _fine_tuned(task: Task, working: WorkingCopy, num_steps: int) -> Tensor:
    """Fine-tune all weights (D,) for a while, as chains would if they could."""
    network = task.network.with_state(task.network.unflatten(working.weights))
    return _before_the_chains(task, network, method="full", num_steps=num_steps)


def _before_the_chains(task: Task, network: FlatNetwork, **how: Any) -> Tensor:
    try:
        return finetune(
            network,
            task.source,
            likelihood=task.likelihood,
            batch_size=None if isinstance(task.source, LoaderData) else task.batch_size,
            seed=task.seed,
            progress_bar=False,
            **how,
        ).weights
    except KeyboardInterrupt as error:  # what it says is kept, and how to go on, is not so here
        raise KeyboardInterrupt(
            "stage 1 was stopped before the first step of its chains; nothing of it is kept"
        ) from error


def _choose(
    task: Task, pulls: Pulls, beta: float, groups: Grouping | None
) -> tuple[float, tuple[str, ...]]:
    num_data, num_ranked = task.source.num_data, int(task.ranked.sum())
    count = task.num_selected or max(1, round(USUAL_SHARE * num_ranked))
    group = None if groups is None else group_index(task.network, groups).long()
    sizes = pulls.outside(task.ranked, group)
    data_size = telling_weight(sizes.of_weights, count, beta, num_data)
    notes = []
    if data_size > num_data:
        notes.append(
            f"the data count {data_size / num_data:.3g} times (data_size={data_size:.4g}, of "
            f"{num_data:,} rows), so that {count:,} weights can stand out: the scales are a "
            f"ranking, not a posterior at data_size={num_data}"
        )
    return data_size, (*notes, *_chance_notes(sizes, count))


def _chance_notes(sizes: Sizes, count: int) -> list[str]:
    """Note how much of the strongest pulls may be chance, where that is most of them or all."""
    what = "weights"
    if sizes.members is not None:
        count = int((sizes.pull >= least_of(sizes.of_weights, count)).sum())
        what = "groups"
    chance = chance_among(sizes.pull, sizes.by_chance, count)
    if not chance.noted:
        return []
    more = "" if chance.share >= MOSTLY_CHANCE else ", and it cannot be excluded that all would"
    return [
        f"of the {count:,} {what} that the data pull hardest about {100 * chance.share:.0f} % "
        f"would be pulled as hard by the choice of the rows alone{more}: the data hardly tell "
        f"which {what} have to move, and another sample would select others"
    ]
