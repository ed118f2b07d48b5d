"""What one sampling step costs, side by side with peers, everything measured in one run.

    python benchmarks/step.py [--chains 1 4 16] [--repeats 9] [--output benchmarks/results/step.txt]

Workload 1 is the localised tempered posterior of a network 64-64-10 (n = 10,000, batch 256) under
SGLD; workload 2 an idiomatic Pyro regression, by how its step is run. A cell is µs a step for all
chains together, set-up and compilation left out. README.md says what each row does.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
from collections.abc import Sequence
from importlib import metadata, util

import torch
from printed import add_output, met_or_missed, show
from samplers import NETWORK_ROWS, REGRESSION_ROWS, THINNING, Row, Run

SECONDS = 0.3  # length of one timing
MAX_STEPS = 4000

Cell = tuple[str, int]  # a row's label, chains


class Timing:
    """The repeated timings of one cell, in µs a step for all its chains."""

    def __init__(self, row: Row, num_chains: int) -> None:
        self.run: Run = row.make(num_chains)
        self.label, self.values = f"{row.label}, {num_chains} chains", list[float]()
        self.num_steps = 10 * THINNING
        self.once()  # compiles, fills caches
        steps = SECONDS * 1e6 / self.once()
        self.num_steps = THINNING * max(2, min(MAX_STEPS, round(steps)) // THINNING)
        self.once()

    def once(self) -> float:
        seconds, positions = self.run(self.num_steps)
        if not all(bool(torch.isfinite(position).all()) for position in positions):
            raise FloatingPointError(f"{self.label}: a chain diverged, so its timing means nothing")
        return seconds / self.num_steps * 1e6

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        return f"{self.median:.0f} ({min(self.values):.0f})"


def measure(rows: Sequence[Row], chains: Sequence[int], repeats: int) -> dict[Cell, Timing]:
    """Time every cell in turn, `repeats` times round, so that a noisy spell hits all alike."""
    timings = {
        (row.label, count): Timing(row, count)
        for row in rows
        if installed(row)
        for count in chains
        if row.only_chains in (None, count)
    }
    for _ in range(repeats):
        for timing in timings.values():
            timing.values.append(timing.once())
    return timings


def installed(row: Row) -> bool:
    return all(util.find_spec(name) is not None for name in row.needs)


def table(rows: Sequence[Row], chains: Sequence[int], timings: dict[Cell, Timing]) -> list[str]:
    head = [f"{count} chain{'s' * (count > 1)}" for count in chains]
    lines = [f"{'':24}" + "".join(f"{title:>18}" for title in head)]
    for row in rows:
        empty = "-" if installed(row) else "not installed"
        cells = [str(timings.get((row.label, count), empty)) for count in chains]
        label = row.label
        if row.needs and installed(row):
            label += " " + metadata.version(row.needs[0])
        lines.append(f"{label:24}" + "".join(f"{cell:>18}" for cell in cells))
    return lines


def ratio(timings: dict[Cell, Timing], slower: Cell, faster: Cell, aim: float | None) -> list[str]:
    """How many times faster: the median over rounds of the ratio within a round."""
    if slower not in timings or faster not in timings:
        return []
    pairs = zip(timings[slower].values, timings[faster].values, strict=True)
    times = statistics.median(a / b for a, b in pairs)
    verdict = "" if aim is None else f"   aim >= {aim:g}: {met_or_missed(times >= aim)}"
    names = [f"{label}, {count}" for label, count in (slower, faster)]
    return [f"{names[0] + ' : ' + names[1]:48}{times:8.2f}{verdict}"]


def usable_cores() -> int | None:
    """Those this process may run on, where the system tells (`taskset` counts)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def report(chains: Sequence[int], repeats: int) -> str:
    before = os.getloadavg()[0]
    network = measure(NETWORK_ROWS, chains, repeats)
    regression = measure(REGRESSION_ROWS, [4], repeats)
    lines = [
        f"µs a step for all chains: median (minimum) of {repeats} interleaved rounds",
        f"{platform.machine()}, {usable_cores()} core(s), torch {torch.__version__} with "
        f"{torch.get_num_threads()} thread(s), load before and after: {before:.1f}, "
        f"{os.getloadavg()[0]:.1f}",
        "",
        "1. Localised tempered posterior, network 64-64-10, batch 256 of 10,000, SGLD",
        *table(NETWORK_ROWS, chains, network),
        "",
        "2. Pyro regression, sigma and w (10), batch 100 of 10,000, SGLD",
        *table(REGRESSION_ROWS, [4], regression),
        "",
        "Ratios (times faster, round by round, median)",
    ]
    for row in NETWORK_ROWS[1:]:
        for count in chains:
            aim = {("plain torch SGD", 1): 1.0, ("devinterp", 4): 2.3}.get((row.label, count))
            lines += ratio(network, (row.label, count), ("ppl-fe", count), aim)
    eager, traced, compiled = ((row.label, 4) for row in REGRESSION_ROWS)
    lines += ratio(regression, eager, traced, None)
    lines += ratio(regression, eager, compiled, 10.0)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chains", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--repeats", type=int, default=9)
    add_output(parser)
    arguments = parser.parse_args()
    show(report(arguments.chains, arguments.repeats), arguments.output)


if __name__ == "__main__":
    main()
