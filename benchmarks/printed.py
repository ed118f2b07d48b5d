"""What benchmarks print: a table, kept in a file where one is named, and lines with the time."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

STARTED = time.time()


def say(message: str, started: float = STARTED) -> None:
    """Print a line with the minutes since the start."""
    print(f"[{(time.time() - started) / 60:5.1f} min] {message}", flush=True)


def add_output(parser: argparse.ArgumentParser) -> None:
    """The option that names a file for the table."""
    parser.add_argument("--output", type=Path, help="also write the table to this file")


def show(table: str, output: Path | None) -> None:
    """Print the table, and write it where `add_output` was given a file."""
    print(table)
    if output is not None:
        output.write_text(table + "\n")
