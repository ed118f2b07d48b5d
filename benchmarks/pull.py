"""How hard does a task pull at single weights? What a Laplace scale needs to be told from others.

    python benchmarks/pull.py [--tasks sst2 stsb] [--quick] [--output benchmarks/results/pull.txt]

With the log-likelihood n·L of a task, a weight is pulled from its pretrained value by n|∂L/∂w|. Its
posterior mean scale under Gamma(α, β) exceeds that of a weight that nothing pulls by much only
where the pull is some three times β (tests/finetuning/test_what_moves_a_scale.py). Here the pulls
are measured on the network and the tasks of glue.py, at the pretrained weights with a head that has
been trained alone, on two halves of the rows: the correlation of the two says how much of them is
the rows' own noise. The last column is the N̂/n at which a share of p = 0.5 % is pulled by 3β.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from glue.pretrained import absent, real_problem
from glue.rules import HEAD, Problem
from glue.synthetic import quick_problem
from glue.tasks import TASKS
from printed import add_output, show
from torch import Tensor

import ppl_fe as fe
from ppl_fe.finetuning.flat_weights import WorkingCopy
from ppl_fe.finetuning.objective import Objective
from ppl_fe.finetuning.threshold import outside

BETA, WANTED, SPARSITY = 100.0, 3.0, 0.005
BATCH, MOST_BATCHES = 32, 32  # rows of a batch, and batches of a half


def pulls(problem: Problem, num_steps: int) -> tuple[Tensor, Tensor]:
    """n ∂L/∂w of the weights outside the head, (D',) from either half of the rows."""
    network, (inputs, targets) = problem.network, problem.training
    tuned = fe.finetune(
        network, problem.training, likelihood=problem.likelihood, method="head", head=HEAD,
        learning_rate=1e-2, num_steps=num_steps, batch_size=16, progress_bar=False,
    )  # fmt: skip
    working = WorkingCopy(network, Objective(problem.likelihood, network.device, network.autocast))
    working.weights.copy_(tuned.weights)
    size = len(targets)
    batches = min(MOST_BATCHES, size // (2 * BATCH))
    halves = torch.zeros(2, network.num_parameters)
    for half in range(2):
        for k in range(half * batches, (half + 1) * batches):
            rows = slice(k * BATCH, (k + 1) * BATCH)
            batch = {name: values[rows] for name, values in inputs.items()}, targets[rows]
            working.differentiate(batch)[1].add_to(halves[half], size / batches)
    kept = outside(network.slices, network.head_names(HEAD))
    return halves[0, kept], halves[1, kept]


def row(task: str, problem: Problem, num_steps: int) -> str:
    one, other = pulls(problem, num_steps)
    pull = (0.5 * (one + other)).abs() / BETA
    strong = pull.kthvalue(round((1 - SPARSITY) * len(pull))).values.item()
    shares = [100 * (pull > least).float().mean().item() for least in (1.0, WANTED)]
    correlation = torch.corrcoef(torch.stack([one, other]))[0, 1].item()
    return (
        f"{task:6}{len(problem.training[1]):8}{strong:12.3f}{pull.max().item():10.2f}"
        f"{shares[0]:12.5f}{shares[1]:12.5f}{correlation:14.2f}{WANTED / strong:12.0f}"
    )


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/text"))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["cb", "stsb", "sst2"])
    parser.add_argument("--quick", action="store_true", help="a tiny network on a random task")
    add_output(parser)
    options = parser.parse_args(argv)
    if options.quick:
        make, num_steps = quick_problem, 4
    elif lack := absent(options.data):
        print(f"skipped: {lack}")
        return 0
    else:
        make, num_steps = partial(real_problem, options.data), 100
    lines = [
        f"pull n|dL/dw| in units of beta = {BETA:g}, outside the head, head trained alone",
        "",
        f"{'task':6}{'n':>8}{'top 0.5 %':>12}{'largest':>10}{'% above 1':>12}{'% above 3':>12}"
        f"{'corr. halves':>14}{'N-hat/n':>12}",
        *(row(task, make(task, 0), num_steps) for task in options.tasks),
    ]
    show("\n".join(lines), options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
