"""From how long a run on it pays to compile: what "auto" weighs, measured.

    OMP_NUM_THREADS=1 python benchmarks/worth_compiling.py [--output results/worth_compiling.txt]

The step of a trajectory, of posteriors of posteriordb: its operations, the seconds that a call of
the traced graph is predicted to take and takes, those of the compiled one, and the processor
seconds of compiling on an empty cache (but for the header that all kernels share, which a machine
compiles once, in some five seconds more). "even at" is the predicted length of a traced run from
which compiling saves time: cost × predicted/(traced − compiled). `WORTH_COMPILING_SECONDS` is it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from printed import add_output, show, torch_and_load
from processor_time import processor_seconds

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

CALLS = 1000


class MeasuredError(Exception):
    """Ends the run, of which nothing but the step was wanted."""


def cell(name: str) -> str:
    """Measure one posterior's step, in this process."""
    import torch
    from posteriordb.programs import POSTERIORS
    from posteriordb.reference import load

    import ppl_fe as fe
    from ppl_fe.inference.step import compile as compiling
    from ppl_fe.inference.step import trajectories
    from ppl_fe.inference.step.graph_passes import with_constants

    torch.set_num_threads(1)
    rows: list[str] = []

    def seconds_a_call(run: Any, example: Sequence[Any]) -> float:
        with torch.no_grad():
            for _ in range(CALLS // 50):
                run(*example)
            begun = time.process_time()
            for _ in range(CALLS):
                run(*example)
            return (time.process_time() - begun) / CALLS

    def measured(function: Any, example: Any, *_: Any, read_constants: bool) -> None:
        graph = compiling.trace(function, example, read_constants=read_constants)
        plain = with_constants(graph)
        predicted = compiling.predicted_seconds(plain, example, 1)
        traced = seconds_a_call(plain, example)
        begun = processor_seconds()
        compiled = compiling.compile_graph(graph, example)
        cost = processor_seconds() - begun
        fast = seconds_a_call(compiled, example)
        times = "".join(f"{1e3 * one:11.3f}" for one in (predicted, traced, fast))
        even = cost * predicted / (traced - fast)
        rows.append(f"{name:42}{len(plain.graph.nodes):6}{times}{cost:9.1f}{even:9.1f}")
        raise MeasuredError

    vars(trajectories)["build"] = measured
    program, arguments = POSTERIORS[name]
    try:
        fe.sample(program, *arguments(load(name).data), progress_bar=False)
    except MeasuredError:
        return rows[0]
    raise RuntimeError(f"{name} was sampled without a step of a trajectory")


def main() -> None:
    from posteriordb.programs import POSTERIORS

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(POSTERIORS), help="posteriors")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    add_output(parser)
    given = parser.parse_args()
    if given.cell:
        print(cell(given.cell))
        return
    load = os.getloadavg()[0]
    head = "".join(f"{word:>11}" for word in ("predicted", "traced ms", "compiled"))
    lines = [
        "Milliseconds of a step's call, processor seconds of compiling it, and where both are even",
        torch_and_load(load),
        "",
        f"{'posterior':42}{'nodes':>6}{head}{'cost s':>9}{'even at':>9}",
    ]
    for name in given.only:
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, __file__, "--cell", name],
                capture_output=True,
                text=True,
                check=True,
                env={
                    **os.environ,
                    "TORCHINDUCTOR_CACHE_DIR": folder,
                    "TORCHINDUCTOR_COMPILE_THREADS": "1",
                },
            )
        lines.append(done.stdout.splitlines()[-1])
    show("\n".join(lines), given.output)


if __name__ == "__main__":
    main()
