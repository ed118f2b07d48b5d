"""The shell command `ppl-fe`: the Python functions with the same defaults, one file a command.

A command's file has `add(commands)`, its options, and `run(given)`, which takes them by name and
gives the exit status.

    demo_command.py      pretrain, rank and fine-tune small networks on digits
    rank_command.py      which checkpoint
    select_command.py    which parameters
    finetune_command.py  train these, keep what changed
    diagnose_command.py  can a saved run be believed
    task.py              what select and finetune share: a network, a task's data, files
    factories.py         networks and data from the user's code, MODULE:FACTORY
    tables.py            tables as files
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ppl_fe.cli import (
    demo_command,
    diagnose_command,
    finetune_command,
    rank_command,
    select_command,
)
from ppl_fe.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `ppl-fe` with these arguments; returns the exit status.

    Example:
        >>> main(["rank", "--network", "nowhere:factory", "--data", "nowhere:data", "a.pt"])
        2
    """
    given = vars(_parser().parse_args(arguments))
    command, run = given.pop("command"), given.pop("run")
    try:
        status: int = run(given)
    except (ValueError, TypeError, OSError, ImportError, ArithmeticError, RuntimeError) as error:
        print(f"ppl-fe {command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"ppl-fe {command}: interrupted", file=sys.stderr)
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ppl-fe",
        description="Which checkpoint to fine-tune, which of its parameters, and whether the "
        "sampler converged.",
    )
    parser.add_argument("--version", action="version", version=f"ppl-fe {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (
        demo_command,
        rank_command,
        select_command,
        finetune_command,
        diagnose_command,
    ):
        command.add(commands)
    return parser
