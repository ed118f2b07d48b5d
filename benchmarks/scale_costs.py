"""What `scale.py` measures, each call in a process of its own.

    python benchmarks/scale_costs.py '{"sampler": "sgld", "sizes": [[10000, 1]], "rounds": 3,
        "run": true}'

prints the costs of those (parameters, chains) as JSON.
"""

from __future__ import annotations

import gc
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, cast

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.fx import GraphModule

from ppl_fe import models
from ppl_fe.inference.kernels import Kernel
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.record.recorder import Recorder
from ppl_fe.inference.run_plan import RunLength, RunPlan, Target
from ppl_fe.inference.samplers import BAOAB, SGLD
from ppl_fe.inference.step.chains import Chains
from ppl_fe.inference.step.compile import CompileMode
from ppl_fe.inference.warmup.curvature import Stiffest, stiffest

SECONDS = 0.2  # least processor time of one timing
EPSILON = 1e-3
NUM_SAMPLES, THINNING = 4, 2  # of the whole run

Size = tuple[int, int]  # D, C


class Cost(NamedTuple):
    """Of one size, in processor ns a step, parameter and chain; peaks in GB.

    step: all of it; noise: drawing the Gaussian noise; copy: `b.copy_(a)` of as many floats.
    stepping, run: peak resident memory after steps alone, and after a whole run, or None.
    """

    num_parameters: int
    num_chains: int
    step: float
    noise: float
    copy: float
    stepping: float
    run: float | None

    @property
    def microseconds(self) -> float:
        """A step of all chains."""
        return self.step * self.num_parameters * self.num_chains / 1e3

    @property
    def copied(self) -> float:
        """Bytes that copying moves in the time a step takes beside its noise."""
        return (self.step - self.noise) / self.copy * 8


def quadratic(anchor: Tensor) -> None:
    """The localiser about w*, and one observation of the whole vector: gradient 5 (w* − w)."""
    w = models.gaussian(anchor, 1.0)
    pyro.sample("y", dist.Normal(w, 0.5).to_event(1), obs=anchor)


# Settings by hand, so that a run has nothing to tune.
KERNELS: dict[str, Kernel] = {
    "sgld": SGLD(quadratic, step_size=EPSILON),
    "baoab": BAOAB(quadratic, step_size=EPSILON, friction=1.0),
}


def chains_of(sampler: str, size: Size, mode: CompileMode) -> Chains:
    """Chains as `sample` makes them, at their anchor."""
    num_parameters, num_chains = size
    anchor = torch.linspace(-1, 1, num_parameters)
    target = Target(Density(quadratic, (anchor,)), start=anchor.expand(num_chains, -1))
    plan = RunPlan(RunLength(NUM_SAMPLES, 0), num_chains=num_chains, compile=mode)
    chains, _ = KERNELS[sampler].prepare(target, plan)
    if chains.compile_mode != mode:
        raise RuntimeError(f"asked for compile={mode!r}, ran {chains.compile_mode!r}")
    return chains


def bytes_moved(sampler: str, num_parameters: int = 10_000) -> dict[str, int]:
    """Bytes a parameter and step of one chain: what the step's graph must read and write.

    "read" and "written": the graph's inputs that it uses and its outputs, of the size of a
    position; "noise": its writing beforehand. Scalars and what a fused kernel keeps in registers
    count nothing, so a graph compiled to several kernels moves more. "fewest": the sampler's state
    read and written once, the anchor read once, and the noise never in memory.
    """
    chains = chains_of(sampler, (num_parameters, 1), "traced")
    graph, leaves = cast(GraphModule, chains._built.run), chains._leaves
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    copied = [n.args[0] for n in graph.graph.nodes if n.target is torch.ops.aten.copy_.default]
    pairs = list(zip(inputs, leaves, strict=True))
    read = [leaf for node, leaf in pairs if node.users and node not in copied]
    places = {leaf.data_ptr() for leaf in leaves}
    fresh = [tensor for tensor in graph(*leaves) if tensor.data_ptr() not in places]
    written = [leaf for node, leaf in pairs if node in copied] + fresh
    found = {
        name: sum(t.element_size() for t in tensors if t.numel() == num_parameters)
        for name, tensors in (("read", read), ("written", written))
    }
    width = chains.position.element_size()
    return {**found, "noise": width, "fewest": width * (2 * len(chains.state) + 1)}


def measure(sampler: str, sizes: Sequence[Size], rounds: int, run: bool) -> list[Cost]:
    """Costs of sizes (D, C) timed in turn in this process; `run` adds the last's whole run."""
    torch.set_num_threads(1)
    timings, peaks = [], []
    for size in sizes:
        chains = chains_of(sampler, size, "compiled")
        chains.advance()
        peaks.append(peak())
        source, target = torch.zeros(size), torch.zeros(size)
        actions: tuple[Callable[[], object], ...] = (
            chains.advance,
            chains.stream.next,
            partial(target.copy_, source),
        )
        once = processor_seconds(chains.advance, chains.stream.block_steps)
        blocks = max(1, round(SECONDS / once / chains.stream.block_steps))
        timings.append((actions, blocks * chains.stream.block_steps, list[list[float]]()))
    for _ in range(rounds):
        for actions, num_steps, values in timings:
            values.append([processor_seconds(action, num_steps) for action in actions])
    costs = []
    for size, stepping, (_, _, values) in zip(sizes, peaks, timings, strict=True):
        each = 1e9 / (size[0] * size[1])
        step, noise, copy = (each * statistics.median(v) for v in zip(*values, strict=True))
        costs.append(Cost(*size, step, noise, copy, stepping, None))
    if run:
        del source, target, actions, timings
        gc.collect()
        costs[-1] = costs[-1]._replace(run=whole_run(chains))
    return costs


def whole_run(chains: Chains) -> float:
    """Peak GB after what `sample` does once its chains stand: curvature, draws, moments, result."""
    recorder = Recorder(chains.density, chains.blocks, chains.num_chains, NUM_SAMPLES)
    start = torch.ones_like(chains.position)
    found = stiffest(chains, Stiffest(start[:, :1], start))  # few iterations, the same memory
    chains.measure_temperature(chains.position, found.direction)
    del start, found
    for _ in range(NUM_SAMPLES):
        chains.advance()
        position = chains.position
        statistics = chains.advance()
        loss, virials = chains.take_means(THINNING)
        recorder.add(position, statistics, loss, virials, chains.settings["step_size"][:, 0])
    draws = recorder.finish({}, {})
    mean = draws["moments"]["w"].sel(moment="mean")
    if mean.size != chains.density.num_parameters or not bool(np.isfinite(mean).all()):
        raise FloatingPointError("the moments are not finite, so the run means nothing")
    return peak()


def processor_seconds(action: Callable[[], object], repeats: int) -> float:
    """A call's processor time, mean of `repeats`."""
    began = time.process_time()
    for _ in range(repeats):
        action()
    return (time.process_time() - began) / repeats


def peak() -> float:
    """GB of this process's memory that were resident at once, so far."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1e9 if sys.platform == "darwin" else 1e6)


if __name__ == "__main__":
    with torch.no_grad():  # as the loop of a run has it
        print(json.dumps(measure(**json.loads(sys.argv[1]))))
