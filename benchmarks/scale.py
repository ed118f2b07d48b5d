"""What a step costs as parameters and chains grow, what it moves in memory, and what a run needs.

    OMP_NUM_THREADS=1 python benchmarks/scale.py [--quick | --full] [--output table.txt]

The target is a quadratic whose gradient costs next to nothing, so that the sampler itself is
measured. Every size is a process of its own, one at a time: its peak memory is its alone. README.md
says what each column means. --quick: 10^5 parameters and 4 chains at most; --full: up to 10^8
parameters, and 64 chains.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from printed import add_output, met_or_missed, show
from scale_costs import NUM_SAMPLES, THINNING, Cost, Size, bytes_moved

AIM_SLOPE, AIM_GB = (0.9, 1.1), 24.0
# A size that would not fit is not begun.
BYTES_NEEDED = 120  # a parameter, at the peak of a run; 98 to 106 measured
LIMIT_SECONDS = 1200.0
IN_CACHE = 10**6  # below it a parameter costs less, and calls more: no slope is judged there


class Form(NamedTuple):
    """What to measure: D at one chain of each sampler, and C at some D of the first."""

    samplers: tuple[str, ...]
    parameters: tuple[int, ...]
    chains: tuple[int, ...]
    parameters_of_chains: tuple[int, ...]
    rounds: int


QUICK = Form(("sgld",), (10**4, 10**5), (1, 4), (10**4,), 3)
DEFAULT = Form(("sgld",), (10**4, 10**5, 10**6, 10**7), (1, 4, 16, 64), (10**4,), 5)
FULL = Form(
    ("sgld", "baoab"),
    (10**4, 10**5, 10**6, 10**7, 10**8),
    (1, 4, 16, 64),
    (10**4, 10**5),
    5,
)


def apart(sampler: str, sizes: Sequence[Size], rounds: int, run: bool) -> list[Cost]:
    """`scale_costs.measure` in a process of its own; an error names what could not be done."""
    needed = BYTES_NEEDED * max(parameters * chains for parameters, chains in sizes)
    if needed > available():
        raise MemoryError(f"needs about {needed / 1e9:.0f} GB, {available() / 1e9:.0f} are free")
    request = json.dumps({"sampler": sampler, "sizes": sizes, "rounds": rounds, "run": run})
    script = str(Path(__file__).with_name("scale_costs.py"))
    done = subprocess.run(
        [sys.executable, script, request],
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_SECONDS,
        # Inductor's own helpers import torch anew, for kernels this small in vain.
        env={**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"},
    )
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode}: {done.stderr.strip()[-300:]}")
    return [Cost(*values) for values in json.loads(done.stdout.splitlines()[-1])]


def available() -> float:
    """Bytes that may be had without swapping, where the system tells."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def measured(
    title: str, sampler: str, sizes: Sequence[Size], rounds: int, run: bool
) -> tuple[list[Cost], list[str]]:
    """Costs, or a line that says why there are none."""
    print(f"measuring {sampler}, {title}", file=sys.stderr, flush=True)
    try:
        return apart(sampler, sizes, rounds, run), []
    except (MemoryError, RuntimeError, subprocess.TimeoutExpired) as error:
        return [], [f"  {title}: left out: {error}"]


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Least-squares slope of log cost on log size: 1 where cost is linear.

    Example:
        >>> round(slope([1, 10, 100], [3, 30, 300]), 9)
        1.0
    """
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def verdict(name: str, sizes: Sequence[float], costs: Sequence[float]) -> list[str]:
    """A line with the slope, and whether it is linear; nothing of a single size."""
    if len(sizes) < 2:
        return []
    found = slope(sizes, costs)
    met = met_or_missed(AIM_SLOPE[0] <= found <= AIM_SLOPE[1])
    low, high = AIM_SLOPE
    return [f"  slope in {name}: {found:.2f}   aim {low:g} to {high:g}: {met}"]


def table(costs: Sequence[Cost], lead: str, leads: Sequence[int]) -> list[str]:
    """One line a size; times in ns a step, parameter and chain but for the first."""
    head = (lead, "µs a step", "ns", "noise", "rest", "copy", "rest, bytes")
    lines = [f"{head[0]:>14}{head[1]:>14}" + "".join(f"{name:>9}" for name in head[2:-1])]
    lines[0] += f"{head[-1]:>13}{'GB: steps':>12}{'run':>7}"
    for number, cost in zip(leads, costs, strict=True):
        times = (cost.step, cost.noise, cost.step - cost.noise, cost.copy)
        run = "-" if cost.run is None else f"{cost.run:.2f}"
        lines.append(
            f"{number:14,}{cost.microseconds:14,.1f}"
            + "".join(f"{value:9.2f}" for value in times)
            + f"{cost.copied:13.0f}{cost.stepping:12.2f}{run:>7}"
        )
    return lines


def by_parameters(form: Form, sampler: str) -> list[str]:
    costs, notes = list[Cost](), list[str]()
    for count in form.parameters:
        found, note = measured(f"{count:,} parameters", sampler, [(count, 1)], form.rounds, True)
        costs, notes = costs + found, notes + note
    beyond = [cost for cost in costs if cost.num_parameters >= IN_CACHE]
    lines = [
        f"{sampler}, one chain",
        *table(costs, "parameters", [c.num_parameters for c in costs]),
    ]
    lines += notes
    lines += verdict(
        f"parameters, from {IN_CACHE:,}",
        [c.num_parameters for c in beyond],
        [c.microseconds for c in beyond],
    )
    largest = max(costs, key=lambda cost: cost.num_parameters, default=None)
    if largest is not None and largest.run is not None and largest.num_parameters >= 10**8:
        met = met_or_missed(largest.run <= AIM_GB)
        lines.append(f"  peak of a run {largest.run:.1f} GB   aim <= {AIM_GB:g}: {met}")
    return lines


def by_chains(form: Form, sampler: str, num_parameters: int) -> list[str]:
    sizes = [(num_parameters, count) for count in form.chains]
    title = f"{num_parameters:,} parameters, {form.chains[-1]} chains at most"
    costs, notes = measured(title, sampler, sizes, form.rounds, False)
    counts = [cost.num_chains for cost in costs]
    return [
        f"{sampler}, {num_parameters:,} parameters a chain",
        *table(costs, "chains", counts),
        *notes,
        *verdict("chains", counts, [cost.microseconds for cost in costs]),
    ]


def traffic(sampler: str) -> str:
    """Counted bytes beside the fewest possible."""
    found = bytes_moved(sampler)
    total = found["read"] + found["written"] + found["noise"]
    return (
        f"  {sampler:6} read {found['read']}, written {found['written']}, noise written beforehand "
        f"{found['noise']}: {total}   fewest {found['fewest']}   "
        f"{total / found['fewest']:.1f} times"
    )


def report(form: Form) -> str:
    before = os.getloadavg()[0]
    blocks = [by_parameters(form, sampler) for sampler in form.samplers]
    blocks += [by_chains(form, form.samplers[0], count) for count in form.parameters_of_chains]
    head = (
        f"processor time on one thread, ns a step, parameter and chain, median of {form.rounds} "
        f"interleaved rounds\n{platform.machine()}, torch {torch.__version__}, float32, load "
        f"before and after: {before:.1f}, {os.getloadavg()[0]:.1f}\n"
        f"run: {NUM_SAMPLES} draws, thinning {THINNING}, moments and DataTree included"
    )
    moved = ["Bytes a parameter and step, one chain", *map(traffic, form.samplers)]
    return "\n\n".join([head, *map("\n".join, [*blocks, moved])])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", dest="form", action="store_const", const=QUICK)
    parser.add_argument("--full", dest="form", action="store_const", const=FULL)
    add_output(parser)
    arguments = parser.parse_args()
    show(report(arguments.form or DEFAULT), arguments.output)


if __name__ == "__main__":
    main()
