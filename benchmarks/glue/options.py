"""The options that every comparison of rules has."""

from __future__ import annotations

import argparse
from pathlib import Path

from glue.rules import METHODS


def add_options(parser: argparse.ArgumentParser, results: str) -> None:
    """Which rules and seeds to run, where the runs are written, and the table alone."""
    parser.add_argument("--rules", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument(
        "--rates",
        type=int,
        default=6,
        help="learning rates that a search tries, those in the middle first; where it ends at its "
        "edge (* in the table) give a larger number",
    )
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results") / results)
    parser.add_argument("--table", action="store_true", help="print the table and run nothing")
