"""The shell command `ppl-fe`: the Python functions with the same defaults, one file a command.

A command's file has `parser()`, its options, and `run(given)`, which takes them by name and gives
the exit status. It is imported when its command is called, and what it works with when it runs, so
that help and errors of the command line need not wait for torch.

    demo_command.py      pretrain, rank and fine-tune small networks on digits
    rank_command.py      which checkpoint
    select_command.py    which parameters
    finetune_command.py  train these, keep what changed
    diagnose_command.py  can a saved run be believed
    parser.py            options, their help and their errors
    task.py              what select and finetune share: a network, a task's data
    factories.py         networks and data from the user's code, MODULE:FACTORY
    paths.py             files, looked at first
    tables.py            tables as files
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn, TextIO

from ppl_fe.arguments import did_you_mean
from ppl_fe.version import __version__

COMMANDS = {
    "demo": "pretrain, rank and fine-tune small networks on scikit-learn's digits",
    "rank": "rank checkpoints by pretraining free energy",
    "select": "select the parameters to update",
    "finetune": "fine-tune the selected parameters and keep a small file of what changed",
    "diagnose": "check a saved run: mixing, temperature, length",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `ppl-fe` with these arguments; returns the exit status.

    Example:
        >>> main(["rank", "--network", "nowhere:factory", "--data", "nowhere:data", "a.pt"])
        2
    """
    name, *options = [*(sys.argv[1:] if arguments is None else arguments)] or [""]
    if name not in COMMANDS:
        _answer(name)
    command = import_module(f"ppl_fe.cli.{name}_command")
    given = command.parser().read(options)

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        print(f"ppl-fe {name}: {message}", file=sys.stderr)

    try:
        with warnings.catch_warnings():
            warnings.showwarning = show  # without the line of a library that it came from
            status: int = command.run(given)
    except (ValueError, TypeError, OSError, ImportError, ArithmeticError, RuntimeError) as error:
        print(f"ppl-fe {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"ppl-fe {name}: interrupted", file=sys.stderr)
        return 130
    return status


def _answer(asked: str) -> NoReturn:
    """Answer a call without a command: help, version, or what is wrong."""
    if asked in ("-h", "--help"):
        print(_overview())
        raise SystemExit(0)
    if asked == "--version":
        print(f"ppl-fe {__version__}")
        raise SystemExit(0)
    wrong = f"no command {asked!r}" if asked else "no command was given"
    near = did_you_mean(asked, COMMANDS)
    there = "there are " + ", ".join(COMMANDS)
    print(f"ppl-fe: {wrong}; {near or there}", file=sys.stderr)
    raise SystemExit(2)


def _overview() -> str:
    commands = "\n".join(f"  {name:10}{what}" for name, what in COMMANDS.items())
    return (
        "usage: ppl-fe COMMAND [options]\n\n"
        "Which checkpoint to fine-tune, which of its parameters, and whether the sampler "
        f"converged.\n\n{commands}\n\n"
        "ppl-fe COMMAND --help   its options with their defaults, how long it takes, an example\n"
        "ppl-fe --version        the version"
    )
