"""`ppl-fe demo`: does free energy predict transfer, on digits?"""

from __future__ import annotations

import sys
from typing import Any

from ppl_fe.cli.parser import Parser

DESCRIPTION = """
Does free energy predict transfer? Pretrains 24 small networks on the digits 0-4, ranks
them, fine-tunes each on few examples of two tasks, and compares.
"""


def parser() -> Parser:
    """Make the command's options."""
    demo = Parser(
        "demo",
        description=DESCRIPTION,
        duration="About a minute on two cores that do nothing else.",
        example="ppl-fe demo --output demo-output",
    )
    demo.add_argument(
        "--output",
        default="demo-output",
        metavar="FOLDER",
        help="for table, draws and picture; default demo-output",
    )
    demo.add_argument("--seed", type=int, default=0, help="of all that is random; default 0")
    return demo


def run(given: dict[str, Any]) -> int:
    """Run the demo and print its report."""
    try:
        from ppl_fe.demo import run_demo
    except ImportError as error:
        raise ImportError(f"{error}; pip install 'ppl-fe[demo]'") from error
    report = run_demo(given["output"], seed=given["seed"], progress_bar=sys.stderr.isatty())
    print(report)
    return 0
