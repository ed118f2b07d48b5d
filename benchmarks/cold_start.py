"""Where the time from a call to its first step goes: imports, tracing, Inductor, the C++ compiler.

    python benchmarks/cold_start.py [--output benchmarks/results/cold_start.txt]

Every cell is a process of its own, whose caches on disk are empty ("cold") or those that the same
call left ("warm"). Numbers are processor seconds, and in the last column the wall clock's. MALT
runs a regression of four parameters, BAOAB a network 64-64-10 in minibatches, and "estimate" is
`estimate_free_energy` of that network; each is compiled whether or not that would pay. "loop" is a
recurrence over 200 steps as a Python loop, traced and not compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nothing_compiled import nothing_compiled
from printed import add_output, show, torch_and_load

WAYS = ("MALT", "BAOAB", "estimate", "loop")
PHASES = ("import", "trace", "functionalise", "Inductor", "C++", "other")


class Phases:
    """Processor seconds by phase, the first of which is "import".

    What runs within another phase counts to the inner one alone.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._open, self._last = ["import"], 0.0  # a process's clock begins with it

    def _count(self) -> None:
        now = time.process_time()
        self.seconds[self._open[-1]] += now - self._last
        self._last = now

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._count()
        self._open.append(name)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def imported(self) -> None:
        """Count what is in no phase to "other" from here on."""
        self._count()
        self._open = ["other"]

    def wrap(self, module: Any, function: str, name: str) -> None:
        """Count the time in a module's function to a phase."""
        inner = getattr(module, function)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return inner(*args, **kwargs)

        setattr(module, function, timed)

    def done(self) -> dict[str, float]:
        """Give the seconds of all phases; those of ended processes are the compiler's."""
        self._count()
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.seconds["C++"] += ended.ru_utime + ended.ru_stime
        return self.seconds


def cell(way: str) -> dict[str, float]:
    """Measure one way in this process."""
    phases, started = Phases(), time.perf_counter()
    import torch

    import ppl_fe as fe

    torch.set_num_threads(1)
    call = CALLS[way](fe)
    _ = fe.sample, fe.estimate_free_energy  # imported by now
    from ppl_fe.inference.step import compile as compiling

    phases.imported()
    phases.wrap(compiling, "trace", "trace")
    phases.wrap(compiling, "_by_inductor", "functionalise")
    if way != "loop":
        with phases.phase("Inductor"):
            from torch._inductor import compile_fx
        phases.wrap(compile_fx, "compile_fx_inner", "Inductor")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call()
    return {**phases.done(), "wall": time.perf_counter() - started}


def malt(fe: Any) -> Callable[[], Any]:
    import pyro
    import pyro.distributions as dist
    import torch

    def program(x: torch.Tensor, y: torch.Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        sd = pyro.sample("sd", dist.HalfNormal(1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(x @ slope, sd), obs=y)

    x = torch.randn(200, 3)
    return lambda: fe.sample(
        fe.MALT(program),
        x,
        x.sum(1),
        num_samples=4,
        warmup_steps=0,
        compile="compiled",
        progress_bar=False,
    )


def network(fe: Any) -> tuple[Any, Any]:
    import torch
    from torch import nn

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return fe.FlatNetwork(module), (torch.randn(2000, 64), torch.randint(10, (2000,)))


def baoab(fe: Any) -> Callable[[], Any]:
    flat, (x, y) = network(fe)
    program = fe.models.local_posterior(flat)
    return lambda: fe.sample(
        fe.BAOAB(program, step_size=1e-6),
        x,
        y,
        initial_params={"w": flat.anchor.repeat(4, 1)},
        num_samples=4,
        warmup_steps=0,
        compile="compiled",
        progress_bar=False,
    )


def estimate(fe: Any) -> Callable[[], Any]:
    flat, data = network(fe)
    return lambda: fe.estimate_free_energy(
        flat, data, num_samples=4, warmup_steps=0, compile="compiled", progress_bar=False
    )


def loop(fe: Any) -> Callable[[], Any]:
    import pyro
    import pyro.distributions as dist
    import torch

    def recurrence(y: torch.Tensor) -> None:
        a = pyro.sample("a", dist.Uniform(0.0, 1.0))
        b = pyro.sample("b", dist.Uniform(0.0, 1.0))
        variances = [torch.ones(())]
        for t in range(1, len(y)):
            variances.append(0.1 + a * y[t - 1] ** 2 + b * variances[-1])
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(0.0, torch.stack(variances).sqrt()), obs=y)

    y = torch.randn(200)
    return lambda: fe.sample(
        fe.MALT(recurrence, metric="identity"),
        y,
        num_samples=4,
        warmup_steps=0,
        compile="traced",
        progress_bar=False,
    )


CALLS = dict(zip(WAYS, (malt, baoab, estimate, loop), strict=True))


def table(cells: dict[tuple[str, str], dict[str, float]], load: float) -> str:
    columns = (*PHASES, "all", "wall")
    lines = [
        "Processor seconds from a process's start to its first step",
        torch_and_load(load),
        "",
        f"{'':16}" + "".join(f"{name:>15}" for name in columns),
    ]
    for (way, state), found in cells.items():
        found["all"] = sum(found[name] for name in PHASES)
        numbers = "".join(f"{found[name]:15.1f}" for name in columns)
        lines.append(f"{way + ', ' + state:16}{numbers}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--cell", choices=WAYS, help=argparse.SUPPRESS)
    add_output(parser)
    given = parser.parse_args()
    if given.cell:
        print(json.dumps(cell(given.cell)))
        return
    cells, load = dict[tuple[str, str], dict[str, float]](), os.getloadavg()[0]
    for way in given.only:
        with tempfile.TemporaryDirectory() as folder:
            for state in ("cold", "warm") if way != "loop" else ("traced",):
                done = subprocess.run(
                    [sys.executable, __file__, "--cell", way],
                    capture_output=True,
                    text=True,
                    check=True,
                    env=nothing_compiled(folder) | {"OMP_NUM_THREADS": "1"},
                )
                cells[way, state] = json.loads(done.stdout.splitlines()[-1])
                print(way, state, cells[way, state], file=sys.stderr, flush=True)
    show(table(cells, load), given.output)


if __name__ == "__main__":
    main()
