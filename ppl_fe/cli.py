"""The shell command `ppl-fe`: the Python functions with the same defaults."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ppl_fe.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `ppl-fe` with these arguments; returns the exit status.

    Example:
        >>> main(["rank", "--network", "nowhere:factory", "--data", "nowhere:data", "a.pt"])
        2
    """
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except (ValueError, TypeError, OSError, ImportError, ArithmeticError, RuntimeError) as error:
        print(f"ppl-fe {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"ppl-fe {options.command}: interrupted", file=sys.stderr)
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ppl-fe",
        description="Which checkpoint to fine-tune, by free energy, with error bars.",
    )
    parser.add_argument("--version", action="version", version=f"ppl-fe {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_demo(commands)
    _add_rank(commands)
    return parser


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="pretrain, rank and fine-tune small networks on scikit-learn's digits",
        description="Does free energy foretell transfer? About a minute on two cores.",
    )
    demo.add_argument("--output", default="demo-output", help="folder for table, draws, picture")
    demo.add_argument("--seed", type=int, default=0)
    demo.set_defaults(run=_demo)


def _add_rank(commands: Any) -> None:
    rank = commands.add_parser(
        "rank",
        help="rank checkpoints by pretraining free energy",
        description="Rank checkpoints of one architecture by pretraining free energy (WBIC).",
        argument_default=argparse.SUPPRESS,  # what is not given keeps the Python default
    )
    rank.add_argument("checkpoints", nargs="+", help="files or folders, each as PATH or NAME=PATH")
    rank.add_argument(
        "--network", required=True, metavar="MODULE:FACTORY", help="() -> torch.nn.Module"
    )
    rank.add_argument(
        "--data", required=True, metavar="MODULE:FACTORY", help="() -> (inputs, targets)"
    )
    rank.add_argument("--held-out", metavar="MODULE:FACTORY", help="() -> (inputs, targets)")
    rank.add_argument("--baselines", action="store_true", help="add the cheap criteria")
    rank.add_argument("--head", help="module whose input are the features; default the last linear")
    rank.add_argument("--likelihood", help="categorical, normal or next_token")
    rank.add_argument("--localization", type=float, help="gamma")
    rank.add_argument("--inverse-temperature", type=float, help="beta; default 1/log n")
    rank.add_argument("--batch-size", type=int, help="examples a step; 0 means all")
    rank.add_argument("--step-size", type=float, help="epsilon; default automatic")
    for name in ("num-chains", "num-samples", "warmup-steps", "thinning", "seed"):
        rank.add_argument(f"--{name}", type=int)
    rank.add_argument("--save-to", help="new folder for the draws")
    rank.add_argument("--output", help="table as .csv or .json")
    rank.set_defaults(run=_rank)


def _demo(options: argparse.Namespace) -> int:
    try:
        from ppl_fe.demo import run_demo
    except ImportError as error:
        raise ImportError(f"{error}; pip install 'ppl-fe[demo]'") from error
    report = run_demo(options.output, seed=options.seed, progress_bar=sys.stderr.isatty())
    print(report)
    return 0


def _rank(options: argparse.Namespace) -> int:
    from ppl_fe.free_energy.ranking import rank_checkpoints

    given = dict(vars(options))
    for name in ("run", "command"):
        del given[name]
    output = given.pop("output", None)
    if output is not None and Path(output).suffix not in (".csv", ".json"):
        raise ValueError(f"--output must end in .csv or .json, got {output!r}")
    module = load_factory("--network", given.pop("network"))
    data = load_factory("--data", given.pop("data"))
    if "held_out" in given:
        given["held_out"] = load_factory("--held-out", given["held_out"])
    if given.get("batch_size") == 0:
        given["batch_size"] = None
    given["baseline_columns"] = given.pop("baselines", False)
    named = dict(_name_and_path(text) for text in given.pop("checkpoints"))
    table = rank_checkpoints(named, module, data, progress_bar=sys.stderr.isatty(), **given)
    print(_printed(table))
    if output is not None:
        _write_table(table, Path(output))
    return 0 if (table["error"] == "").all() else 1


def load_factory(option: str, text: str) -> Any:
    """Call `module:factory`, found on the path or in the current folder.

    Raises:
        ValueError: not of that form, or no such attribute.
        ImportError: the module cannot be imported.
    """
    module_name, _, name = text.partition(":")
    if not module_name or not name:
        raise ValueError(f"{option} must be MODULE:FACTORY, got {text!r}")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = importlib.import_module(module_name)
    if not hasattr(module, name):
        raise ValueError(f"{option}: module {module_name!r} has no {name!r}")
    return getattr(module, name)()


def _name_and_path(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    return (name, path) if equals and not Path(text).exists() else (text, text)


def _printed(table: pd.DataFrame) -> str:
    numbers = table.drop(columns=["note", "error"]).round(3).dropna(axis=1, how="all")
    lines = [numbers.to_string(), ""]
    for column in ("note", "error"):
        said = table[table[column] != ""][column]
        lines += [f"{column}: {name}: {text}" for name, text in said.items()]
    return "\n".join([*lines, textwrap.fill(table.attrs["read_first"], 100)])


def _write_table(table: pd.DataFrame, path: Path) -> None:
    """Write aside and rename, so that an interrupted write leaves the old file."""
    aside = path.with_name(f"{path.name}.partial")
    if path.suffix == ".csv":
        table.to_csv(aside)
    else:
        table.to_json(aside, orient="index", indent=2)
    os.replace(aside, path)


if __name__ == "__main__":
    sys.exit(main())
