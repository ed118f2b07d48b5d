"""Four small convolutional networks ranked at the defaults: how long, or how soon one is told.

    OMP_NUM_THREADS=1 python benchmarks/four_networks.py [--limit 600]
        [--output benchmarks/results/four_networks.txt]

`fe.rank_checkpoints(checkpoints, module, data)` of four networks of 1,910 weights, trained at four
rates on 1,400 of scikit-learn's digits, in a process of its own. What it shows is read as it
comes: the time of each line that says what the run would take, and of the end. After `--limit`
seconds it is stopped, as one would who was told. The aims: ranked within two minutes, or told
within 20 seconds what it would take and what to change.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time

import torch
from printed import add_output, met_or_missed, show, torch_and_load
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import ppl_fe as fe

RATES = (1e-2, 5e-3, 2e-3, 1e-3)
BEGINS = "the call begins"
MOST_RANKED, MOST_TOLD = 120.0, 20.0


def network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 12, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 10)),
    )


def trained(rate: float, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(0)
    module = network()
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    for _ in range(600):
        rows = torch.randint(0, len(x), (64,))
        optimizer.zero_grad()
        cross_entropy(module(x[rows]), y[rows]).backward()
        optimizer.step()
    return module.state_dict()


def rank() -> None:
    digits = load_digits()
    x = torch.tensor(digits.images[:1400], dtype=torch.float32)[:, None] / 16
    y = torch.tensor(digits.target[:1400])
    checkpoints = {f"rate {rate:g}": trained(rate, x, y) for rate in RATES}
    print(BEGINS, file=sys.stderr, flush=True)
    table = fe.rank_checkpoints(checkpoints, network(), (x, y), progress_bar=True)
    print(table.to_string(), file=sys.stderr, flush=True)


def watched(limit: float) -> tuple[float | None, float | None, list[str]]:
    """Give the seconds until it was told, those until the table, and what was shown."""
    child = subprocess.Popen(
        [sys.executable, __file__, "--rank"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    assert child.stderr is not None
    begun, told, lines, piece = None, None, [], b""
    while char := child.stderr.read(1):
        if char not in b"\r\n":
            piece += char
            continue
        line, piece = piece.decode().strip(), b""
        if begun is None:
            begun = time.perf_counter() if line == BEGINS else None
            continue
        now = time.perf_counter() - begun
        if line and "%|" not in line and limit < float("inf"):  # after the stop its traceback
            lines.append(f"{now:6.1f} s  {line}")
            if told is None and re.search(r"would need|about .* (s|min|h)\b", line):
                told = now
        if now > limit:
            child.send_signal(signal.SIGINT)
            limit = float("inf")
            lines.append(f"{now:6.1f} s  stopped here, by this script")
    ended = child.wait() == 0 and limit < float("inf") and begun is not None
    return told, (time.perf_counter() - begun if ended and begun else None), lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--limit", type=float, default=600.0, help="seconds")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    add_output(parser)
    given = parser.parse_args()
    if given.rank:
        return rank()
    load = os.getloadavg()[0]
    told, ranked, lines = watched(given.limit)
    rows = [torch_and_load(load), "", *lines, ""]
    if ranked is not None:
        met = met_or_missed(ranked <= MOST_RANKED)
        rows.append(f"ranked after   {ranked:6.1f} s   aim {MOST_RANKED:g} s: {met}")
    if told is not None:
        met = met_or_missed(told <= MOST_TOLD)
        rows.append(f"told after     {told:6.1f} s   aim {MOST_TOLD:g} s: {met}")
    show("\n".join(rows), given.output)


if __name__ == "__main__":
    main()
