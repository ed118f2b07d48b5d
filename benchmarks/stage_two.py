"""What a step of stage 2 costs at 22.7 million weights, 0.5 % of them trained, beside plain SGD.

    python benchmarks/stage_two.py [--quick] [--output results/stage_two.txt]

Both take the same batches as `stage_one.py`, through the same transformer, forward and backward.
Stage 2 is the loop that `finetune` runs, AdamW on a random 0.5 % of the entries, its checks,
history and last good state included; plain SGD updates every weight and does nothing else. Times
are medians over interleaved rounds of a few steps, the ratio is taken round by round. Optimiser
state is counted in the optimiser after its steps, beside what AdamW on all the weights holds.
--quick: a transformer of 0.1 million weights.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics

import torch
from printed import add_output, met_or_missed, show, torch_and_load
from stage_one import BATCH, TOKENS, Step, data, network, plain_sgd, seconds

from ppl_fe.data import TensorData
from ppl_fe.finetuning.objective import Objective, shuffled
from ppl_fe.finetuning.train.trained_entries import TrainedEntries, build_optimizer, mask_entries
from ppl_fe.finetuning.train.training_loop import Training, TrainingPlan
from ppl_fe.networks.flat import FlatNetwork

SHARE, STEPS = 0.005, 5  # of the weights; a round
AIM, AIM_STATE = 1.1, 0.02


def sparse(net: FlatNetwork, source: TensorData) -> tuple[Step, torch.optim.Optimizer]:
    """A round of stage 2, and its optimiser."""
    chosen = torch.rand(net.num_parameters, generator=torch.Generator().manual_seed(2)) < SHARE
    module = copy.deepcopy(net.module)
    trained = TrainedEntries(module, mask_entries(net, chosen))
    optimizer = build_optimizer("adamw", trained.leaves, 1e-4, 0.0)
    objective, batches = Objective("categorical", net.device), shuffled(source, BATCH, 0)
    plan = TrainingPlan(STEPS, 1e-4, "constant", STEPS, 1)

    def run() -> None:
        training = Training(module, trained, optimizer, objective, plan, None)
        training.run(batches, progress_bar=False)

    return run, optimizer


def full(net: FlatNetwork, source: TensorData) -> Step:
    step = plain_sgd(net, source)

    def run() -> None:
        for _ in range(STEPS):
            step()

    return run


def held(optimizer: torch.optim.Optimizer) -> int:
    """Numbers in an optimiser's state."""
    states = optimizer.state.values()
    return sum(tensor.numel() for state in states for tensor in state.values())


def report(quick: bool, rounds: int) -> str:
    load = os.getloadavg()[0]
    (net, name), source = network(quick), data(quick)
    plain = full(net, source)
    stage_two, optimizer = sparse(net, source)
    plain()
    stage_two()
    pairs = [(seconds(plain), seconds(stage_two)) for _ in range(rounds)]
    ratio = statistics.median(own / other for other, own in pairs)
    per_step = [1000 * statistics.median(side) / STEPS for side in zip(*pairs, strict=True)]
    state = held(optimizer) / (2 * net.num_parameters)
    lines = [
        f"{name}, {net.num_parameters:,} weights, {SHARE:.1%} of them trained, batch {BATCH} x "
        f"{TOKENS} tokens, {rounds} rounds of {STEPS} steps",
        torch_and_load(load),
        "",
        f"ms a step: plain SGD on all weights {per_step[0]:.0f}, stage 2 {per_step[1]:.0f}",
        f"stage 2 : plain SGD {ratio:.2f}   aim <= {AIM}: {met_or_missed(ratio <= AIM)}",
        f"optimiser state : AdamW's on all weights {state:.2%}   aim <= {AIM_STATE:.0%}: "
        f"{met_or_missed(state <= AIM_STATE)}",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small transformer")
    parser.add_argument("--rounds", type=int, default=9)
    add_output(parser)
    arguments = parser.parse_args()
    show(report(arguments.quick, arguments.rounds), arguments.output)


if __name__ == "__main__":
    main()
