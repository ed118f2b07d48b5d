"""Time from the first call to an answer: bulk and tail ESS of 400 of every scalar, beside peers.

    python benchmarks/answers.py [--only NAME ...] [--python PYTHON] [--output results/answers.txt]
    python benchmarks/answers.py --tall 100000 [--python PYTHON] [--output results/tall.txt]

The ten posteriors of posteriordb, each as one call at its library's defaults: `fe.sample(model)`,
NumPyro's and Pyro's NUTS with 4 chains of 1000 draws after 1000 of warm-up, and blackjax's adjusted
microcanonical sampler with 4 of 2000 trajectories (`blackjax_answers.py`; all doubled until the
ESS is there, the last run counts). Every cell is a process of its own; its first call is "cold"
(tracing and compiling included, imports not), a second with another seed "warm". Processor seconds
count both cores. A peer that has not ended at fifteen times our processor seconds is stopped: they
are its bound, marked ">". The error is the worst over parameters of |mean − reference|/sd and
|sd/ref − 1|.

`--tall N`: a logistic regression of 50 slopes on N rows, ppl-fe and NumPyro's HMCECS in minibatches
of a thousand, NumPyro's NUTS on all rows (`tall_data.py`); the first call alone, and peers are
stopped at four times ours.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from nothing_compiled import nothing_compiled
from printed import add_output, met_or_missed, show
from processor_time import processor_seconds

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

WAYS = ("ppl-fe", "NumPyro NUTS", "blackjax MCLMC", "Pyro NUTS")
TALL_WAYS = ("ppl-fe", "NumPyro HMCECS", "NumPyro NUTS")
ESS = 400.0
# Times ours, and seconds, after which a peer is stopped.
PATIENCE, TALL_PATIENCE, IMPORTS = 15.0, 4.0, 15.0
Draws = dict[str, Any]  # name -> (C, S, *shape)


def by_ppl_fe(name: str) -> Callable[[int], Draws]:
    from posteriordb.programs import POSTERIORS
    from posteriordb.reference import load

    import ppl_fe as fe

    program, arguments = POSTERIORS[name]
    data = arguments(load(name).data)

    def run(seed: int) -> Draws:
        draws = fe.sample(program, *data, seed=seed, progress_bar=False)
        return {str(k): v.values for k, v in draws.posterior.data_vars.items()}

    return run


def by_numpyro(name: str) -> Callable[[int], Draws]:
    import jax
    import numpyro
    from posteriordb.programs import POSTERIORS
    from posteriordb.reference import load

    jax.config.update("jax_enable_x64", True)
    programs = importlib.import_module("numpyro_programs")
    arguments = [np.asarray(v) for v in POSTERIORS[name].arguments(load(name).data)]

    def once(seed: int, factor: int) -> Draws:
        kernel = numpyro.infer.NUTS(programs.PROGRAMS[name])
        mcmc = numpyro.infer.MCMC(
            kernel,
            num_warmup=1000,
            num_samples=1000 * factor,
            num_chains=4,
            chain_method="sequential",
            progress_bar=False,
        )
        mcmc.run(jax.random.PRNGKey(seed), *arguments)
        found = mcmc.get_samples(group_by_chain=True)
        return {k: np.asarray(v) for k, v in found.items()}

    return lambda seed: enough(lambda factor: once(seed, factor))


def by_pyro(name: str) -> Callable[[int], Draws]:
    import pyro
    import torch
    from posteriordb.programs import POSTERIORS
    from posteriordb.reference import load
    from pyro.infer import MCMC, NUTS, Predictive

    torch.set_default_dtype(torch.float64)
    program, arguments = POSTERIORS[name]
    data = arguments(load(name).data)
    names = list(load(name).draws)

    def once(seed: int, factor: int) -> Draws:
        pyro.set_rng_seed(seed)
        chains = []
        for _ in range(4):
            mcmc = MCMC(NUTS(program), 1000 * factor, 1000, disable_progbar=True)
            mcmc.run(*data)
            draws = mcmc.get_samples()
            if derived := [k for k in names if k not in draws]:  # deterministic sites
                draws |= Predictive(program, draws, return_sites=derived)(*data)
            chains.append({k: v.detach().numpy() for k, v in draws.items()})
        return {k: np.stack([chain[k] for chain in chains]) for k in chains[0]}

    return lambda seed: enough(lambda factor: once(seed, factor))


def by_blackjax(name: str) -> Callable[[int], Draws]:
    import jax
    from posteriordb.programs import POSTERIORS
    from posteriordb.reference import load

    jax.config.update("jax_enable_x64", True)
    programs = importlib.import_module("numpyro_programs")
    arguments = [np.asarray(v) for v in POSTERIORS[name].arguments(load(name).data)]
    once = importlib.import_module("blackjax_answers").sampler(programs.PROGRAMS[name], arguments)
    return lambda seed: enough(lambda factor: once(seed, factor))


def enough(run: Callable[[int], Draws]) -> Draws:
    """Run longer until the ESS is there; the clock of the last run is what counts."""
    factor = 1
    while True:
        CLOCK.start()
        draws = run(factor)
        if worst_ess(draws) >= ESS or factor >= 16:
            return draws
        factor *= 2


class Clock:
    """Wall and processor seconds since the last start."""

    def start(self) -> None:
        self.wall, self.processor = time.perf_counter(), processor_seconds()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self.wall, processor_seconds() - self.processor


CLOCK = Clock()
MAKERS = {
    "ppl-fe": by_ppl_fe,
    "NumPyro NUTS": by_numpyro,
    "blackjax MCLMC": by_blackjax,
    "Pyro NUTS": by_pyro,
}


def worst_ess(draws: Draws) -> float:
    from arviz_stats.base import array_stats

    axes: dict[str, Any] = {"chain_axis": 0, "draw_axis": 1}
    found = []
    for values in draws.values():
        flat = np.asarray(values, dtype=np.float64).reshape(*values.shape[:2], -1)
        for column in np.moveaxis(flat, 2, 0):
            if np.ptp(column) > 0:
                found.append(float(array_stats.ess(column, **axes, method="bulk")))
                found.append(
                    float(array_stats.ess(column, **axes, method="tail", prob=(0.05, 0.95)))
                )
    return min(found)


def errors(name: str, draws: Draws) -> tuple[float, float]:
    """The worst |mean − m|/s and |sd/s − 1| over the reference's parameters."""
    from posteriordb.reference import load

    worst = [0.0, 0.0]
    for key, theirs in load(name).draws.items():
        ours = np.asarray(draws[key])
        ours = ours.reshape(*ours.shape[:2], -1)
        for k, column in enumerate(np.moveaxis(theirs.reshape(*theirs.shape[:2], -1), 2, 0)):
            m, s = column.mean(), column.std()
            worst[0] = max(worst[0], abs(float(ours[..., k].mean()) - m) / s)
            worst[1] = max(worst[1], abs(float(ours[..., k].std()) / s - 1))
    return worst[0], worst[1]


def cell(way: str, name: str) -> dict[str, Any]:
    """Measure one way on one posterior, in this process."""
    import torch

    torch.set_num_threads(1)
    run = MAKERS[way](name)
    found: dict[str, Any] = {"way": way, "name": name}
    for seed, state in enumerate(("cold", "warm")):
        CLOCK.start()
        draws = run(seed)
        found[f"{state} wall"], found[f"{state} processor"] = CLOCK.read()
        found[f"{state} ess"] = worst_ess(draws)
        found[f"{state} errors"] = errors(name, draws)
        print(json.dumps(found), flush=True)  # each state as it comes, should the next be stopped
    return found


def tall_cell(way: str, num_data: int) -> dict[str, Any]:
    """Measure one way on so many data, in this process."""
    import tall_data
    import torch

    torch.set_num_threads(1)
    run = tall_data.MAKERS[way](num_data)
    CLOCK.start()
    draws = run(0, 1) if way == "ppl-fe" else enough(lambda longer: run(0, longer))
    wall, processor = CLOCK.read()
    return {
        "way": way,
        "num_data": num_data,
        "wall": wall,
        "processor": processor,
        "ess": worst_ess(draws),
        "mean": draws["slope"].mean((0, 1), dtype=np.float64).tolist(),
        "sd": draws["slope"].std((0, 1), dtype=np.float64).tolist(),
    }


def tall_table(cells: list[dict[str, Any]], load: float) -> str:
    import tall_data

    lines = [
        "Seconds to bulk and tail ESS 400 of every slope, and the worst error of that run",
        f"one thread a library, load before and after {load:.1f}, {os.getloadavg()[0]:.1f}",
        "",
        f"{'rows':>9}  {'way':16}{'cold s':>8}{'cpu s':>8}{'ESS':>7}{'mean':>7}{'sd':>7}  ours/its",
    ]
    known = {n: tall_data.reference(n) for n in {one["num_data"] for one in cells}}
    ours = {one["num_data"]: one["processor"] for one in cells if one["way"] == "ppl-fe"}
    for one in cells:
        ratio = ours.get(one["num_data"], math.nan) / one["processor"]
        row = f"{one['num_data']:9}  {one['way']:16}"
        if one["stopped"]:
            lines.append(
                f"{row}{'':8}{'>' + format(one['processor'], '.1f'):>8}{'':21}{ratio:10.3f}"
            )
            continue
        mean, sd = known[one["num_data"]]
        off = abs((np.array(one["mean"]) - mean) / sd).max(), abs(one["sd"] / sd - 1).max()
        lines.append(
            f"{row}{one['wall']:8.1f}{one['processor']:8.1f}"
            f"{one['ess']:7.0f}{off[0]:7.3f}{off[1]:7.3f}{ratio:10.3f}"
        )
    return "\n".join(lines)


def table(cells: list[dict[str, Any]], load: float) -> str:
    head = f"{'posterior':42}{'way':14}{'cold s':>8}{'cpu s':>8}{'warm s':>8}{'cpu s':>8}"
    lines = [
        "Seconds to bulk and tail ESS 400 of every scalar, and the worst error of that run",
        f"one thread a library, load before and after {load:.1f}, {os.getloadavg()[0]:.1f}",
        "",
        head + f"{'ESS':>7}{'mean':>7}{'sd':>7}",
    ]
    for one in cells:
        text = f"{one['name']:42}{one['way']:14}"
        for state in ("cold", "warm"):
            for clock in ("wall", "processor"):
                seconds = one.get(f"{state} {clock}")
                bound = ">" if state == one["stopped"] else ""
                text += f"{'' if seconds is None else f'{bound}{seconds:.1f}':>8}"
        if "cold errors" in one:
            mean, sd = one["cold errors"]
            text += f"{one['cold ess']:7.0f}{mean:7.3f}{sd:7.3f}"
        lines.append(text)
    lines += ["", "ppl-fe's processor seconds over a peer's, geometric mean and largest"]
    found = {(one["way"], one["name"]): one for one in cells}
    for way, aim in (("NumPyro NUTS", 1.0), ("blackjax MCLMC", 1.0), ("Pyro NUTS", 0.1)):
        for state in ("cold", "warm"):
            ratios = [
                found["ppl-fe", name][f"{state} processor"] / peer[f"{state} processor"]
                for (other, name), peer in found.items()
                if other == way and ("ppl-fe", name) in found and f"{state} processor" in peer
            ]
            if ratios:
                mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
                lines.append(
                    f"{way + ', ' + state:24}{mean:8.2f}{max(ratios):8.2f}"
                    f"   aim <= {aim:g}: {met_or_missed(mean <= aim)}"
                )
    return "\n".join(lines)


def main() -> None:
    from posteriordb.programs import POSTERIORS

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(POSTERIORS), help="posteriors")
    ways = list(dict.fromkeys([*WAYS, *TALL_WAYS]))
    parser.add_argument("--ways", nargs="+", default=ways, choices=ways)
    parser.add_argument(
        "--python", default=sys.executable, help="an interpreter with ppl-fe and the peers"
    )
    parser.add_argument("--tall", nargs="+", type=int, metavar="N", help="rows of tall data")
    parser.add_argument("--cell", nargs=2, metavar=("WAY", "NAME"), help=argparse.SUPPRESS)
    add_output(parser)
    given = parser.parse_args()
    if given.cell:
        way, name = given.cell
        if name.isdigit():
            print(json.dumps(tall_cell(way, int(name))))
        else:
            cell(way, name)
        return
    load, names = os.getloadavg()[0], map(str, given.tall or given.only)
    known = TALL_WAYS if given.tall else WAYS
    cells = list[dict[str, Any]]()
    for name in names:
        ours = math.inf
        for way in known:
            if way not in given.ways:
                continue
            patience = TALL_PATIENCE if given.tall else PATIENCE
            found = in_a_process(way, name, given.python, patience * ours)
            if found is not None:
                cells.append(found)
                if way == "ppl-fe":
                    ours = found["processor" if given.tall else "cold processor"]
    show((tall_table if given.tall else table)(cells, load), given.output)


def in_a_process(way: str, name: str, python: str, most: float) -> dict[str, Any] | None:
    """Measure a cell in a process of its own; None where it fails, with the reason printed.

    It is stopped after `most` processor seconds, and what imports take.
    """

    def limited() -> None:
        if most < math.inf:
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(most + IMPORTS),) * 2)

    with tempfile.TemporaryDirectory() as compiled:
        done = subprocess.run(
            [sys.executable if way == "ppl-fe" else python, __file__, "--cell", way, name],
            capture_output=True,
            text=True,
            env={
                **nothing_compiled(compiled),
                "OMP_NUM_THREADS": "1",
                "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
            },
            check=False,
            preexec_fn=limited,
        )
    stopped = -done.returncode in (signal.SIGXCPU, signal.SIGKILL) and most < math.inf
    if done.returncode and not stopped:
        print(f"{way} on {name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    found: dict[str, Any] = {"way": way, "name": name, "stopped": ""}
    if done.stdout:
        found |= json.loads(done.stdout.splitlines()[-1])
    elif stopped:  # of the second call nothing is known where the first took nearly all
        found |= {"cold processor": most, "stopped": "cold"}
        if name.isdigit():
            found |= {"processor": most, "num_data": int(name)}
    print(found, file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    main()
