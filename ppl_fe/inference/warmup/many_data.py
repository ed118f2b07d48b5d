"""Find the mode and the metric of very many data, by their curvature on ten thousand rows.

A posterior of D parameters has a Hessian that n rows know to √(D/n), a tenth or so, and no metric
has to be better. Its mode they know to √(N/n) posterior standard deviations only, and control
variates about a point that far out are as noisy as none. So the mode is found on the rows, and then
moved by Newton steps that take the gradient from all the data and the Hessian from the rows: each
leaves a tenth of the distance, for one pass over the data.
"""

from __future__ import annotations

from torch import Tensor

from ppl_fe.inference.program.density import Density
from ppl_fe.inference.step.dense_metric import LinearMap, at_the_mode
from ppl_fe.inference.step.gradients import exact_evaluation
from ppl_fe.inference.warmup.starts import MOST_ROWS, some_rows

MOST_PASSES, ARRIVED = 10, 1e-3  # nats that a step still promises


def are_many(density: Density) -> bool:
    """Say whether plates subsample more data than the rows that a descent looks at."""
    return bool(density.subsamples) and density.num_data > 2 * MOST_ROWS


def at_the_mode_of_many(density: Density, start: Tensor, seed: int) -> LinearMap | None:
    """Find what `at_the_mode` finds, without a Hessian of all the data.

    Args:
        density: the target, whose plates subsample.
        start: (C, D), of which the first is descended from.
        seed: of the rows.

    Returns:
        None where no mode was found, or one that says nothing of the posterior.
    """
    found = at_the_mode(density, start, some_rows(density, seed))
    if found is None:
        return None
    mode, root = found.origin[0], found.factor[0]
    inward = root.mT @ exact_evaluation(density, mode[None]).gradient[0]
    for _ in range(MOST_PASSES):
        there = mode + root @ inward
        then = root.mT @ exact_evaluation(density, there[None]).gradient[0]
        if not then.norm() < inward.norm():
            break
        mode, inward = there, then
        if 0.5 * inward.square().sum() < ARRIVED:
            break
    return found._replace(origin=mode.expand_as(start).clone())
