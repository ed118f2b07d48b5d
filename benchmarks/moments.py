"""What mean, sd, R-hat and ESS of every coordinate cost over a run, beside ArviZ on stored draws.

    OMP_NUM_THREADS=1 python benchmarks/moments.py [--quick] [--output table.txt]

The chains are AR(1) of coefficient 0.5, float32; making them is not timed. ArviZ takes a thousand
of the coordinates, stored, and its processor time is multiplied up to all. --quick: 10^5
parameters, 200 draws, ten seconds.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from arviz_stats.base import array_stats
from numpy.typing import NDArray
from printed import add_output, met_or_missed, show
from torch import Tensor

from ppl_fe.inference.record import running_moments as module
from ppl_fe.inference.record.running_moments import RunningMoments

CHAINS, RHO, AIM_SECONDS = 4, 0.5, 10.0
BLOCKS = (2**14, 2**16, module.BLOCK_COORDINATES, 2**20)
WATCHED = 1000  # coordinates that ArviZ is asked about


class Clock:
    """Seconds on the wall and of the processor, for a machine that others share."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def __enter__(self) -> Clock:
        self._start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter() - self._start[0]
        self.cpu += time.process_time() - self._start[1]

    def __str__(self) -> str:
        return f"{self.wall:8.2f} s ({self.cpu:.2f} s of processor)"


def add_all(draws: Sequence[Tensor], num_samples: int) -> Clock:
    """Running moments of these draws, again and again until there are S."""
    num_chains, num_parameters = draws[0].shape
    moments = RunningMoments(
        num_chains, num_parameters, num_samples, dtype=torch.float32, device="cpu"
    )
    with Clock() as clock:
        for k in range(num_samples):
            moments.add(draws[k % len(draws)])
    return clock


class Run:
    """One run of C AR(1) chains through running moments, with some coordinates stored."""

    def __init__(self, num_parameters: int, num_samples: int) -> None:
        torch.manual_seed(0)
        moments = RunningMoments(
            CHAINS, num_parameters, num_samples, dtype=torch.float32, device="cpu"
        )
        watched = min(WATCHED, num_parameters)
        self.stored = torch.empty(CHAINS, num_samples, watched)
        self.adding, self.summing = Clock(), Clock()
        position = torch.randn(CHAINS, num_parameters)
        for k in range(num_samples):
            self.stored[:, k] = position[:, :watched]
            with self.adding:
                moments.add(position)
            position = RHO * position + (1 - RHO**2) ** 0.5 * torch.randn_like(position)
        with self.summing:
            summary = moments.summary()
        self.r_hat, self.ess = summary.r_hat[:watched].numpy(), summary.ess[:watched].numpy()


def seconds_by_block(num_parameters: int, num_draws: int) -> list[str]:
    """Processor ms a draw for other block sizes, on draws made beforehand."""
    draws = [torch.randn(CHAINS, num_parameters) for _ in range(16)]
    lines, chosen = [], module.BLOCK_COORDINATES
    for block in BLOCKS:
        module.BLOCK_COORDINATES = block
        each = add_all(draws, num_draws).cpu
        mark = "   (the one used)" if block == chosen else ""
        lines.append(f"  blocks of {block:8,} coordinates{1e3 * each / num_draws:10.2f} ms{mark}")
    module.BLOCK_COORDINATES = chosen
    return lines


def small_problem(num_parameters: int = 10, num_draws: int = 10_000) -> float:
    """Processor µs a draw where calls, not coordinates, cost."""
    draws: list[Tensor] = list(torch.randn(num_draws, CHAINS, num_parameters).unbind())
    return 1e6 * add_all(draws, num_draws).cpu / num_draws


def arviz(stored: NDArray[np.float64], num_parameters: int) -> tuple[list[str], dict[str, object]]:
    """Its statistics of the stored coordinates, and lines with the times."""
    statistics: dict[str, Callable[[], object]] = {
        "rhat, split": lambda: array_stats.rhat(stored, method="split", chain_axis=0, draw_axis=1),
        "rhat, rank": lambda: array_stats.rhat(stored, method="rank", chain_axis=0, draw_axis=1),
        "ess, mean": lambda: array_stats.ess(stored, method="mean", chain_axis=0, draw_axis=1),
    }
    lines, values = [], {}
    for name, statistic in statistics.items():
        with Clock() as clock:
            values[name] = statistic()
        count = stored.shape[2]
        minutes = clock.cpu * num_parameters / count / 60
        lines.append(f"  ArviZ {name:14}{clock} for {count:,}: {minutes:.1f} min for all")
    return lines, values


def report(num_parameters: int, num_samples: int) -> str:
    before = os.getloadavg()[0]
    run = Run(num_parameters, num_samples)
    total = run.adding.wall + run.summing.wall
    is_full = num_parameters * num_samples >= 10**9
    verdict = f"   aim <= {AIM_SECONDS:g} s: {met_or_missed(total <= AIM_SECONDS)}"
    lines, values = arviz(run.stored.double().numpy(), num_parameters)
    r_hat, ess = (np.asarray(values[name]) for name in ("rhat, split", "ess, mean"))
    ratio = run.ess / ess
    blocks = seconds_by_block(num_parameters, num_samples // 10)
    return "\n".join(
        [
            f"{num_parameters:,} parameters, {CHAINS} chains, {num_samples:,} draws, float32",
            f"{platform.machine()}, torch {torch.__version__} with {torch.get_num_threads()} "
            f"thread(s), load before and after: {before:.1f}, {os.getloadavg()[0]:.1f}",
            "",
            f"  adding all draws    {run.adding}",
            f"  summary             {run.summing}",
            f"  together            {total:8.2f} s" + verdict * is_full,
            *lines,
            "",
            f"  R-hat, greatest relative difference from ArviZ split {max_error(run, r_hat):9.1e}",
            f"  ESS / ArviZ's: median {np.median(ratio):.3f}, 5 % to 95 % "
            f"{np.quantile(ratio, 0.05):.2f} to {np.quantile(ratio, 0.95):.2f}",
            "",
            "Processor time of adding one draw",
            *blocks,
            f"  10 parameters, a draw of {CHAINS} chains   {small_problem():8.1f} µs",
        ]
    )


def max_error(run: Run, r_hat: NDArray[np.float64]) -> float:
    return float(np.abs(run.r_hat / r_hat - 1).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10^5 parameters, 200 draws")
    add_output(parser)
    arguments = parser.parse_args()
    show(report(*((10**5, 200) if arguments.quick else (10**6, 1000))), arguments.output)


if __name__ == "__main__":
    main()
