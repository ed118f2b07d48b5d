"""What runs on a CUDA device, and how fast: everything in one command of ten minutes at most.

    python benchmarks/device.py [--data FOLDER] [--output FILE]

Parts, each in a process of its own with a limit of its own, so that one that fails or hangs is
told in the report and the others go on: the tests of the device; a step of the sampler and of
stage 1, in float32 and with the network's products in bfloat16, beside fused AdamW; a chain of 10⁸
parameters; CIFAR-FS at the smallest size. Without a device it says so, and that is all.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from printed import add_output, show
from stage_one import Step, plain_step
from torch import nn

import ppl_fe as fe
from ppl_fe.data import TensorData
from ppl_fe.networks.flat import FlatNetwork

HERE = Path(__file__).parent
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}
ROUNDS = 20
LARGE = 10_000  # the width of a square layer: 10⁸ weights


def median_ms(step: Step, rounds: int = ROUNDS) -> float:
    """Milliseconds of a step, the device waited for; the first steps are left out."""
    times = []
    for number in range(rounds + 3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        if number >= 3:
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def fused_adamw(network: FlatNetwork, source: TensorData, batch_size: int) -> Step:
    """Make the step of the fastest optimiser that torch has, on all weights."""
    return plain_step(partial(torch.optim.AdamW, lr=1e-6, fused=True), network, source, batch_size)


def chain_ms(network: FlatNetwork, data: Any, num_chains: int, draws: int) -> float:
    """Milliseconds of a step of all chains of the estimators' posterior, compiled."""
    model = fe.models.local_posterior(network, batch_size=256)
    found = fe.sample(
        fe.SGLD(model, step_size=1e-6),
        *data,
        num_samples=draws,
        warmup_steps=20,
        thinning=10,
        num_chains=num_chains,
        compile="compiled",
        progress_bar=False,
    )
    return 1000 * float(found.attrs["sampling_time"]) / (10 * draws)


def sampler_step() -> None:
    """Print a step of `step.py`'s network, which its processor-bound rows are about."""
    from samplers import BATCH, module, x, y

    data = x.cuda(), y.cuda()
    for name, precision in PRECISIONS.items():
        network = FlatNetwork(copy.deepcopy(module).cuda(), autocast=precision)
        adamw = median_ms(fused_adamw(network, TensorData(*data, len(y)), BATCH))
        for count in (1, 16):
            own = chain_ms(network, data, count, 50)
            print(f"{name:9} {count:3} chains {own:8.3f} ms   fused AdamW, one {adamw:8.3f} ms")


def stage_one_step() -> None:
    """Print a step of `stage_one.py`'s transformer of 22.7 million weights."""
    import stage_one

    loaded, name = stage_one.network(quick=False)
    source = stage_one.data(quick=False)
    print(name)
    for precision_name, precision in PRECISIONS.items():
        network = FlatNetwork(loaded.module.cuda(), autocast=precision)
        adamw = median_ms(fused_adamw(network, source, stage_one.BATCH))
        own = median_ms(stage_one.chains(network, source))
        print(f"{precision_name:9} {own:8.2f} ms   fused AdamW {adamw:8.2f} ms")


def large_chain() -> None:
    """Print a step and the memory of a chain of 10⁸ parameters."""
    torch.manual_seed(0)
    x, y = torch.randn(1024, LARGE, device="cuda"), torch.randint(10, (1024,), device="cuda")
    module = nn.Sequential(nn.Linear(LARGE, LARGE, bias=False), nn.ReLU(), nn.Linear(LARGE, 10))
    for name, precision in PRECISIONS.items():
        network = FlatNetwork(module.cuda(), autocast=precision)
        adamw = median_ms(fused_adamw(network, TensorData(x, y, len(y)), 256))
        torch.cuda.reset_peak_memory_stats()
        own = chain_ms(network, (x, y), 1, 5)
        peak = torch.cuda.max_memory_allocated() / 1e9
        print(
            f"{name:9} {network.num_parameters:,} parameters {own:8.2f} ms, peak {peak:.1f} GB   "
            f"fused AdamW {adamw:8.2f} ms"
        )


MEASURED = {"step": sampler_step, "stage_one": stage_one_step, "large": large_chain}


def commands(data: Path) -> dict[str, tuple[list[str], float]]:
    """Part -> its command, and the seconds that it may take: 580 of them in all."""
    own = [sys.executable, str(Path(__file__)), "--part"]
    tests = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-k",
        "cuda",
        str(HERE.parent / "tests/test_device.py"),
    ]
    cifar = [sys.executable, str(HERE / "cifar_fs.py"), "--full", "--smoke", "--device", "cuda"]
    return {
        "tests of the device": (tests, 130.0),
        "a step of the sampler": ([*own, "step"], 130.0),
        "a step of stage 1": ([*own, "stage_one"], 110.0),
        "a chain of 10^8 parameters": ([*own, "large"], 90.0),
        "CIFAR-FS, the paper's network at the smallest size": (
            [*cifar, "--data", str(data)],
            120.0,
        ),
    }


def outcome(command: Sequence[str], limit: float) -> str:
    """Run a part; give what it printed, or how it ended and its last lines.

    Example:
        >>> outcome([sys.executable, "-c", "print(1); raise SystemExit(3)"], 60.0)
        'FAILED: exit status 3\\n1'
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit, check=False, cwd=HERE.parent
        )
    except subprocess.TimeoutExpired:
        return f"FAILED: not done after {limit:.0f} s"
    if done.returncode == 0:
        return done.stdout.strip()
    last = [*done.stdout.splitlines()[-15:], *done.stderr.splitlines()[-15:]]
    return "\n".join([f"FAILED: exit status {done.returncode}", *last])


def report(parts: dict[str, tuple[list[str], float]], where: str) -> str:
    """Run all parts one after another, and put together what they say."""
    blocks = [f"{where}, torch {torch.__version__}, {os.cpu_count()} processor cores"]
    for name, (command, limit) in parts.items():
        start = time.perf_counter()
        found = outcome(command, limit)
        blocks.append(f"{name} ({time.perf_counter() - start:.0f} s)\n{found}")
        print(blocks[-1], "\n", flush=True)
    return "\n\n".join(blocks)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar_fs"))
    parser.add_argument("--part", choices=list(MEASURED), help=argparse.SUPPRESS)
    add_output(parser)
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("no CUDA device is here: nothing was measured")
        return 0
    if options.part:
        warnings.simplefilter("ignore")
        MEASURED[options.part]()
        return 0
    show(report(commands(options.data), torch.cuda.get_device_name()), options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
