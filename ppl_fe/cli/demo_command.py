"""`ppl-fe demo`: does free energy predict transfer, on digits?"""

from __future__ import annotations

import sys
from typing import Any


def add(commands: Any) -> None:
    """Add the command and its options."""
    demo = commands.add_parser(
        "demo",
        help="pretrain, rank and fine-tune small networks on scikit-learn's digits",
        description="Does free energy predict transfer? About a minute on two cores.",
    )
    demo.add_argument(
        "--output",
        default="demo-output",
        help="folder for table, draws, picture; default demo-output",
    )
    demo.add_argument("--seed", type=int, default=0, help="default 0")
    demo.set_defaults(run=run)


def run(given: dict[str, Any]) -> int:
    """Run the demo and print its report."""
    try:
        from ppl_fe.demo import run_demo
    except ImportError as error:
        raise ImportError(f"{error}; pip install 'ppl-fe[demo]'") from error
    report = run_demo(given["output"], seed=given["seed"], progress_bar=sys.stderr.isatty())
    print(report)
    return 0
