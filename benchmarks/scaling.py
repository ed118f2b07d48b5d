"""A ranking of 24 checkpoints by one worker and by two, and what sending 1,000 tasks costs.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py [--quick] [--output table.txt]

The checkpoints are networks of 2,474 weights with batch norm, whose statistics differ, so that each
is a lot by itself. Workers are forked and have imported everything: two of the checkpoints are
ranked before, unmeasured. Runs come in the order 2, 1, 1, 2 workers, so that a machine that becomes
slower or faster is the same for both. A simulated task sleeps, so that the rest of the wall time is
what sending tasks and waiting for them costs. --quick: 4 checkpoints and 50 tasks.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from statistics import fmean
from typing import Any, NamedTuple

import pandas as pd
import torch
from printed import add_output, met_or_missed, show, torch_and_load
from torch import Tensor, nn

import ppl_fe as fe
from ppl_fe.tasks.workers import Workers

MOST_RATIO, MOST_SHARE = 0.6, 0.05
WORKERS, SLEPT = 2, 0.05
ORDER = (WORKERS, 1, 1, WORKERS)


class Cost(NamedTuple):
    """Seconds on the wall, and of the processor in the workers."""

    wall: float
    workers: float


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Tanh(), nn.Linear(32, 10))


def checkpoints(count: int) -> dict[str, dict[str, Tensor]]:
    """Untrained networks, each with statistics of its own."""
    torch.manual_seed(0)
    found = {}
    for k in range(count):
        module = network()
        module.train()(torch.randn(100, 64) * (1 + 0.01 * k))
        found[f"{k}"] = {name: value.clone() for name, value in module.state_dict().items()}
    return found


def ranked(states: Any, data: tuple[Tensor, Tensor], count: int) -> tuple[pd.DataFrame, Cost]:
    """Rank by so many forked workers."""
    used, begun = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime, time.perf_counter()
    with ProcessPoolExecutor(count, multiprocessing.get_context("fork")) as pool:
        table = fe.rank_checkpoints(
            states, network(), data, executor=pool, kernel=fe.BAOAB, num_samples=50,
            warmup_steps=100, thinning=5, compile="traced", progress_bar=False,
        )  # fmt: skip
    wall = time.perf_counter() - begun
    return table, Cost(wall, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - used)


def simulated(count: int) -> tuple[float, float]:
    """Give the share of the wall time that is not slept, and the processor that sending took.

    The second is a share of what the tasks took, and is there on a busy machine, too.
    """
    with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("fork")) as pool:
        workers = Workers(pool, most=WORKERS)
        list(workers.run(time.sleep, range(WORKERS), lambda key: (0.01,)))
        begun, used = time.perf_counter(), time.process_time()
        list(workers.run(time.sleep, range(count), lambda key: (SLEPT,)))
        wall, own = time.perf_counter() - begun, time.process_time() - used
    return 1 - count * SLEPT / WORKERS / wall, own / (count * SLEPT)


def bits(data: tuple[Tensor, Tensor]) -> list[str]:
    """Whether the gradient of a loss has the same bits by two threads, and beside other chains."""
    torch.manual_seed(0)
    made = fe.FlatNetwork(nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 10)))
    chains = made.anchor + 0.1 * torch.randn(8, made.num_parameters)

    def loss(vector: Tensor) -> Tensor:
        return nn.functional.cross_entropy(made(vector, data[0]), data[1])

    gradient = torch.func.vmap(torch.func.grad(loss))
    alone, threads = gradient(chains[:1])[0], torch.get_num_threads()
    torch.set_num_threads(2)
    by_two = gradient(chains[:1])[0]
    torch.set_num_threads(threads)
    return [
        f"  {what:30s} {float((other - alone).abs().max() / alone.abs().max()):.1e}"
        for what, other in (
            ("two threads, not one", by_two),
            ("seven chains beside it", gradient(chains)[0]),
            ("the same again", gradient(chains[:1])[0]),
        )
    ]


def report(num_checkpoints: int, num_tasks: int) -> str:
    """Run both; give the table."""
    load = os.getloadavg()[0]
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(1000, 64, generator=generator), torch.arange(1000) % 10
    states = checkpoints(num_checkpoints)
    ranked(dict(list(states.items())[:2]), data, 1)
    tables, costs = zip(*(ranked(states, data, count) for count in ORDER), strict=True)
    for table in tables[1:]:
        pd.testing.assert_frame_equal(tables[0], table, check_exact=True)
    one, two = (
        fmean(cost.wall for count, cost in zip(ORDER, costs, strict=True) if count == workers)
        for workers in (1, WORKERS)
    )
    ratio = two / one
    waited, own = simulated(num_tasks)
    share = f"{own:.1%} of the tasks' time ({waited:.1%} of the wall)"
    return "\n".join(
        [
            torch_and_load(load) + f", {os.cpu_count()} processors",
            "",
            f"{num_checkpoints} checkpoints           wall      processor of the workers",
            *(
                f"  workers: {count}           {cost.wall:7.1f} s   {cost.workers:7.1f} s"
                for count, cost in zip(ORDER, costs, strict=True)
            ),
            f"  ratio of the means   {ratio:7.2f}     aim {MOST_RATIO}: "
            + met_or_missed(ratio <= MOST_RATIO),
            "  tables               equal, bit for bit",
            "",
            f"{num_tasks} tasks of {SLEPT} s at {WORKERS} workers: sending and waiting {share}; "
            f"aim {MOST_SHARE:.0%}: {met_or_missed(own <= MOST_SHARE)}",
            "",
            "a chain's gradient, 19,210 weights, 1,000 rows: largest change, of the largest entry",
            *bits(data),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="4 checkpoints, 50 tasks")
    add_output(parser)
    arguments = parser.parse_args()
    show(report(*((4, 50) if arguments.quick else (24, 1000))), arguments.output)


if __name__ == "__main__":
    main()
