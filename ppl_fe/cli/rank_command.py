"""`ppl-fe rank`: checkpoints by pretraining free energy."""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_fe.cli.factories import load_factory
from ppl_fe.cli.tables import check_table_name, write_table

if TYPE_CHECKING:
    import pandas as pd

DESCRIPTION = """
Rank checkpoints of one architecture by pretraining free energy (WBIC).

Exit status 0: every checkpoint has a number and an error bar, 1: one has no number, or
chains that have not mixed, so that its error bar is worth nothing and it has no p_best,
2: bad input.
"""
EXAMPLE = """
example:
  ppl-fe rank runs/*.safetensors --network mine:network --data mine:pretraining \\
    --held-out mine:held_out --baselines --output ranking.csv
"""


def add(commands: Any) -> None:
    """Add the command and its options."""
    rank = commands.add_parser(
        "rank",
        help="rank checkpoints by pretraining free energy",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    rank.add_argument(
        "--features", help="module whose input counts as the features; default the last linear"
    )
    rank.add_argument("--head", help=argparse.SUPPRESS)  # what --features was called
    rank.add_argument("--save-to", help="new folder for the draws")
    rank.add_argument("--output", help="table as .csv or .json")
    _add_chains(rank.add_argument_group("the chains"))
    rank.set_defaults(run=run)


def _add_chains(group: Any) -> None:
    # The defaults are those of `ChainOptions`, which takes seconds to import; a test compares them.
    group.add_argument(
        "--likelihood", help="categorical, normal or next_token; default categorical"
    )
    group.add_argument("--localization", type=float, help="gamma; default 1.0")
    group.add_argument("--inverse-temperature", type=float, help="beta; default 1/log n")
    group.add_argument("--batch-size", type=int, help="examples a step, 0 for all; default 256")
    group.add_argument("--step-size", type=float, help="epsilon; default auto")
    group.add_argument("--num-chains", type=int, help="of each checkpoint; default 4")
    group.add_argument("--num-samples", type=int, help="kept draws of a chain; default until mixed")
    group.add_argument("--warmup-steps", type=int, help="steps before the first; default as needed")
    group.add_argument("--thinning", type=int, help="steps of a kept draw; default as needed")
    group.add_argument("--seed", type=int, help="default 0")


def run(given: dict[str, Any]) -> int:
    """Rank, print and write the table; 1 if a checkpoint has no number, or no error bar."""
    from ppl_fe.free_energy.ranking import rank_checkpoints

    output = given.pop("output", None)
    if output is not None:
        check_table_name(output)
    module = load_factory("--network", given.pop("network"))
    data = load_factory("--data", given.pop("data"))
    if "held_out" in given:
        given["held_out"] = load_factory("--held-out", given["held_out"])
    if "head" in given:
        print("ppl-fe rank: --head is called --features now", file=sys.stderr)
        given.setdefault("features", given.pop("head"))
    if given.get("batch_size") == 0:
        given["batch_size"] = None
    named = _by_name(given.pop("checkpoints"))
    table = rank_checkpoints(named, module, data, progress_bar=sys.stderr.isatty(), **given)
    print(_printed(table))
    if output is not None:
        write_table(table, Path(output))
    return 0 if table["p_best"].notna().all() else 1


def _by_name(texts: list[str]) -> dict[str, str]:
    """Read PATH and NAME=PATH.

    Raises:
        ValueError: one name for two checkpoints.
    """
    pairs = [_name_and_path(text) for text in texts]
    named = dict(pairs)
    if len(named) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"checkpoints: the name {twice!r} is given twice; leave one out or rename")
    return named


def _name_and_path(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    return (name, path) if equals and not Path(text).exists() else (text, text)


def _printed(table: pd.DataFrame) -> str:
    numbers = table.drop(columns=["note", "error"]).round(3)
    lines = [numbers.to_string(na_rep="—"), ""]
    for column in ("note", "error"):
        said = table[table[column] != ""][column]
        lines += [f"{column}: {name}: {text}" for name, text in said.items()]
    return "\n".join([*lines, textwrap.fill(table.attrs["read_first"], 100)])
