"""What benchmarks print: a table, kept in a file where one is named, and lines with the time."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch

STARTED = time.time()


def say(message: str, started: float = STARTED) -> None:
    """Print a line with the minutes since the start."""
    print(f"[{(time.time() - started) / 60:5.1f} min] {message}", flush=True)


def met_or_missed(met: bool) -> str:
    """What a table says of an aim."""
    return "met" if met else "missed"


def torch_and_load(load: float) -> str:
    """A line on torch, its threads, and how busy the machine was before and is now."""
    return (
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), load before and after "
        f"{load:.1f}, {os.getloadavg()[0]:.1f}"
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    """The option that names a file for the table."""
    parser.add_argument("--output", type=Path, help="also write the table to this file")


def show(table: str, output: Path | None) -> None:
    """Print the table, and write it where `add_output` was given a file."""
    print(table)
    if output is not None:
        output.write_text(table + "\n")
