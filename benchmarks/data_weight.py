"""Which weight of the data lets BayesTune choose best, and does the automatic one find it?

    python benchmarks/data_weight.py [--ways grid auto ...] [--seeds 11 12 ...] [--table] [--quick]

The problem of notebook 03: a network reads digits, six pixels of the scanner come out inverted, and
a share p of 1,210 weights may be updated on 200 images. Every seed draws other images to learn
from, to choose the learning rate by (200) and to test on (497). A way is a rule with its settings;
stage 2 is the same for all, 80 steps of 50 images, and every way searches the same seven rates by
the images held out for it. Runs are kept one a line, and what the file has is not run again. The
table gives the mean test accuracy in %, ± standard error over the seeds there are, the median N̂/n
and processor seconds of stage 1, and how often the rate chosen lay at an edge of the seven.

The ways: `rivals` are other rules; `auto` is BayesTune at its defaults, N̂ automatic and minibatches
of 32; `noise` the same with all the data in a step and with plain minibatches; `grid` takes all the
data at N̂/n from 1 to 1000.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from kept_lines import keep, read
from printed import say
from sklearn.datasets import load_digits
from torch import Tensor, nn

import ppl_fe as fe
from ppl_fe.finetuning.threshold import largest

BROKEN = [26, 27, 28, 34, 35, 36]  # of 8 × 8, in the middle
NUM_LEARN, NUM_CHOOSE = 200, 200
PRETRAINING_SEED = 3
SHARES = (0.01, 0.02, 0.04, 0.08)
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
GRID = (1, 3, 10, 30, 100, 300, 1000)
RESULTS = Path(__file__).parent / "results" / "data_weight.jsonl"


class Reader(nn.Module):
    """Read an image of 64 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(torch.tanh(self.body(x)))
        return output


@dataclass(frozen=True)
class Problem:
    """One seed's task: rows to learn from, to choose the rate by and to test on."""

    network: fe.FlatNetwork
    learn: tuple[Tensor, Tensor]
    choose: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@cache
def pretrained() -> tuple[fe.FlatNetwork, Tensor, Tensor]:
    """The reader of whole images, and the images that it has not seen, with the broken pixels."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(PRETRAINING_SEED))
    before, after = order[:900], order[900:]
    torch.manual_seed(PRETRAINING_SEED)
    module = Reader()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01, weight_decay=1e-3)
    for _ in range(300):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(x[before]), y[before])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    x[:, BROKEN] = 1 - x[:, BROKEN]
    return fe.FlatNetwork(module), x[after], y[after]


def problem(seed: int) -> Problem:
    """The task of a seed; the rows to learn from are those of the notebook at the same seed."""
    network, x, y = pretrained()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    ends = [0, NUM_LEARN, NUM_LEARN + NUM_CHOOSE, len(x)]
    parts = [order[start:stop] for start, stop in pairwise(ends)]
    learn, choose, test = [(x[rows], y[rows]) for rows in parts]
    return Problem(network, learn, choose, test)


def accuracy(network: fe.FlatNetwork, weights: Tensor, data: tuple[Tensor, Tensor]) -> float:
    """The share of images that are read right."""
    with torch.no_grad():
        right = network(weights, data[0]).argmax(1) == data[1]
    return float(right.float().mean())


@dataclass(frozen=True)
class Way:
    """A rule with its settings, or no rule: full fine-tuning.

    Attributes:
        name: in the results.
        make: makes the rule; None for full fine-tuning.
        batch: rows in a step of stage 1; None takes all.
        follows_share: whether the scores depend on p.
    """

    name: str
    make: Callable[[], fe.Rule] | None
    batch: int | None = None
    follows_share: bool = False


def weighted(times: float, **settings: Any) -> Callable[[], fe.Rule]:
    """BayesTune at N̂ = `times` n."""
    return lambda: fe.BayesTune(data_size=times * NUM_LEARN, **settings)


def ways(length: dict[str, Any]) -> dict[str, list[Way]]:
    """The ways to choose, by the name that asks for them."""
    return {
        "rivals": [
            Way("full", None),
            Way("movement", lambda: fe.Movement(num_steps=100, learning_rate=3e-3), 32),
            Way("gradient", lambda: fe.Gradient(), 32),
            Way("gradient_squared", lambda: fe.GradientSquared(), 32),
            Way("magnitude", lambda: fe.Magnitude()),
            Way("random", lambda: fe.Random()),
        ],
        "auto": [Way("bayestune", lambda: fe.BayesTune(**length), 32, follows_share=True)],
        "noise": [
            Way("bayestune, all the data", lambda: fe.BayesTune(**length), follows_share=True),
            Way(
                "bayestune, plain minibatches",
                lambda: fe.BayesTune(gradient="minibatch", **length),
                32,
                follows_share=True,
            ),
        ],
        "grid": [Way(f"bayestune {k} n", weighted(k, **length)) for k in GRID],
    }


def runs(chosen: Sequence[Way], seeds: Sequence[int]) -> Iterator[tuple[Way, int]]:
    """Seed by seed, so that it can stop anywhere."""
    for seed in seeds:
        for way in chosen:
            yield way, seed


def run(way: Way, seed: int, num_steps: int) -> Iterator[dict[str, Any]]:
    """Select at every share, train at every rate, and give one record a share."""
    task, score, found = problem(seed), None, None
    started = time.process_time()
    for share in SHARES if way.make else SHARES[:1]:
        if way.make and (found is None or way.follows_share):
            started = time.process_time()
            found = fe.select_parameters(
                task.network, task.learn, rule=way.make(), sparsity=share, batch_size=way.batch,
                seed=seed, progress_bar=False,
            )  # fmt: skip
            score, seconds = found.score, time.process_time() - started
        if found is None or score is None:
            how: dict[str, Any] = {"method": "full"}
        else:
            how = {"mask": largest(score, round(share * len(score)))}
        tuned = [
            fe.finetune(
                task.network, task.learn, learning_rate=rate, num_steps=num_steps, batch_size=50,
                seed=seed, progress_bar=False, **how,
            ).weights
            for rate in RATES
        ]  # fmt: skip
        yield {
            "way": way.name,
            "seed": seed,
            "share": share if way.make else 1.0,
            "choose": [round(accuracy(task.network, w, task.choose), 4) for w in tuned],
            "test": [round(accuracy(task.network, w, task.test), 4) for w in tuned],
            "times_n": found.settings.get("data_size", NUM_LEARN) / NUM_LEARN if found else None,
            "cpu_seconds": round(seconds, 2) if found else None,
            "notes": len(found.notes) if found else 0,
        }


def table(records: Sequence[dict[str, Any]]) -> str:
    """Mean test accuracy at the rate that the images held out for it chose, by way and share."""
    rows = []
    for one in records:
        best = one["choose"].index(max(one["choose"]))  # the lowest rate of equally good ones
        rows.append(
            {
                "way": one["way"],
                "seed": one["seed"],
                "p": "all" if one["share"] == 1 else f"{100 * one['share']:g} %",
                "test": 100 * one["test"][best],
                "edge": best in (0, len(RATES) - 1),
                "times_n": one["times_n"],
                "seconds": one.get("cpu_seconds"),
            }
        )
    every = pd.DataFrame(rows)
    tests = every.groupby(["way", "p"], sort=False)["test"]
    cell = tests.mean().map("{:.1f}".format) + " ± " + tests.sem().map("{:.1f}".format)
    wide = cell.unstack("p").fillna("")
    grouped = every.groupby("way", sort=False)
    for title, column in (("N-hat/n", "times_n"), ("seconds", "seconds")):
        wide[title] = grouped[column].median().map("{:.3g}".format).replace("nan", "")
    wide["seeds"] = grouped["seed"].nunique()
    wide["at an edge"] = grouped["edge"].sum().astype(str) + " of " + grouped.size().astype(str)
    return str(wide.loc[every["way"].drop_duplicates()].to_string())


def main(argv: Sequence[str]) -> int:
    length = {"num_samples": 4, "warmup_steps": 8, "thinning": 1}
    known = ways({})
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ways", nargs="+", choices=known, default=list(known))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(11, 17)))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print what the file has; run nothing")
    parser.add_argument("--quick", action="store_true", help="a few steps of each, for a test")
    options = parser.parse_args(argv)
    if options.quick:
        known = ways(length)
    chosen = [way for name in options.ways for way in known[name]]
    done = {(one["way"], one["seed"]) for one in read(options.output)}
    for way, seed in [] if options.table else runs(chosen, options.seeds):
        if (way.name, seed) in done:
            continue
        made = list(run(way, seed, 2 if options.quick else 80))
        keep(made, options.output)
        say(f"{way.name}, seed {seed}: {[max(one['test']) for one in made]}")
    print(table(read(options.output)))
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
