"""What share of a selection do independent runs of BayesTune have in common?

    python benchmarks/shared_selections.py [--chains 12] [--share 0.02] [--output FILE]

Chains of default length on the problem of notebook 03 (`data_weight.py`, its seed 11), minibatches
of 32, N̂ automatic, each by itself with a seed of its own. The scores of a run of C chains are the
averages of C of them. The table gives what part of the round(p·D) largest two such runs have in
common, in %, on average over pairs of disjoint groups of the chains: what `settings["agreement"]`
says of a run with several is the column C = 1. Scores of chains are kept in a file, and chains that
are there are not run again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from data_weight import problem
from printed import add_output, say, show
from torch import Tensor

import ppl_fe as fe
from ppl_fe.finetuning.threshold import largest

SEED, BATCH = 11, 32  # of the problem; rows in a step
SIZES, PAIRS = (1, 2, 3, 4, 6), 60
Scales = Literal["drawn", "expected"]


def chain(scales: Scales, share: float, seed: int, steps: dict[str, Any]) -> Tensor:
    """The scores (D,) of one chain."""
    task = problem(SEED)
    found = fe.select_parameters(
        task.network, task.learn, rule=fe.BayesTune(scales=scales, num_chains=1, **steps),
        sparsity=share, batch_size=BATCH, seed=seed, progress_bar=False,
    )  # fmt: skip
    return found.score.double()


def shared(scores: Tensor, size: int, count: int) -> float:
    """What two averages of `size` chains have in common of their `count` largest, of (C, D)."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(1 if size == 1 else PAIRS):
        groups = [[k] for k in range(len(scores))]
        if size > 1:
            order = torch.randperm(len(scores), generator=generator).tolist()
            groups = [order[:size], order[size : 2 * size]]
        tops = [largest(scores[group].mean(0), count) for group in groups]
        found += [int((one & other).sum()) / count for one, other in combinations(tops, 2)]
    return sum(found) / len(found)


def table(scores: dict[Scales, Tensor], share: float) -> str:
    """A row a kind of scale, a column a number of chains."""
    some = next(iter(scores.values()))
    sizes, count = [size for size in SIZES if 2 * size <= len(some)], round(share * some.shape[1])
    lines = [
        f"{count} of {some.shape[1]:,} weights, {len(some)} chains; shared by two runs of C, in %",
        "",
        f"{'':10}" + "".join(f"{f'C = {size}':>8}" for size in sizes),
    ]
    for scales, rows in scores.items():
        cells = [f"{100 * shared(rows, size, count):8.0f}" for size in sizes]
        lines.append(f"{scales:10}" + "".join(cells))
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chains", type=int, default=12)
    parser.add_argument("--share", type=float, default=0.02)
    parser.add_argument(
        "--scores", type=Path, default=Path(tempfile.gettempdir()) / "ppl_fe_chain_scores"
    )
    parser.add_argument("--quick", action="store_true", help="a few steps of each chain")
    add_output(parser)
    options = parser.parse_args(argv)
    steps: dict[str, Any] = (
        {"num_samples": 4, "warmup_steps": 8, "thinning": 1} if options.quick else {}
    )
    options.scores.mkdir(parents=True, exist_ok=True)
    scores: dict[Scales, Tensor] = {}
    for scales in get_args(Scales):
        rows = []
        for seed in range(options.chains):
            path = options.scores / f"{scales}-{options.share:g}-{seed}{'-quick' * bool(steps)}.pt"
            if not path.exists():
                torch.save(chain(scales, options.share, seed, steps), path)
                say(f"{scales}, chain {seed}")
            rows.append(torch.load(path, weights_only=True))
        scores[scales] = torch.stack(rows)
    show(table(scores, options.share), options.output)
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
