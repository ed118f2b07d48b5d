"""`ppl-fe diagnose`: can a saved run be believed?"""

from __future__ import annotations

import argparse
from typing import Any

EXAMPLE = """
example:
  ppl-fe diagnose run.zarr && echo passed
"""


def add(commands: Any) -> None:
    """Add the command and its options."""
    diagnose = commands.add_parser(
        "diagnose",
        help="check a saved run: mixing, temperature, length",
        description="Check a saved run. Exit status 0: passed, 1: a check failed, 2: bad input.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # what is not given keeps the Python default
    )
    diagnose.add_argument("draws", metavar="PATH", help="zarr folder of fe.sample's save_to")
    diagnose.add_argument(
        "--difference", type=float, help="of WBIC in nats, between checkpoints to distinguish"
    )
    diagnose.add_argument(
        "--superchains", type=int, help="groups of chains that shared their start"
    )
    diagnose.add_argument("--group", type=int, help="which of several targets in one run, from 0")
    diagnose.set_defaults(run=run)


def run(given: dict[str, Any]) -> int:
    """Print the verdict; 1 if a check failed."""
    from ppl_fe.diagnostics import diagnose

    verdict = diagnose(given.pop("draws"), **given)
    print(verdict)
    return 0 if verdict.passed else 1
