"""`ppl-fe rank`: checkpoints by pretraining free energy."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_fe.cli.factories import FACTORY, find_factory
from ppl_fe.cli.parser import Parser
from ppl_fe.cli.paths import check_new_folder, check_output, require_path
from ppl_fe.cli.tables import check_table_name, write_table
from ppl_fe.cli.task import LIKELIHOODS

if TYPE_CHECKING:
    import pandas as pd

DESCRIPTION = """
Rank checkpoints of one architecture by pretraining free energy (WBIC, in nats).

Exit status 0: every checkpoint has a number and an error bar, 1: one has no number, or
chains that have not mixed, so that its error bar is worth nothing and it has no p_best;
or none can be trusted, as all chains went below their minimum; 2: bad input.
"""
DURATION = (
    "Until the loss of every checkpoint has mixed: up to 50,000 minibatch gradients a chain, of "
    "all checkpoints side by side; where one of --num-samples, --warmup-steps and --thinning is "
    "given, what they say, by default the 6,000 of 500 draws of 10 steps after 1,000 of "
    "warm-up. A bar shows what is left."
)
EXAMPLE = """
ppl-fe rank runs/*.safetensors --network mine:network --data mine:pretraining \\
  --held-out mine:held_out --baselines --output ranking.csv
"""


def parser() -> Parser:
    """Make the command's options."""
    rank = Parser("rank", description=DESCRIPTION, duration=DURATION, example=EXAMPLE)
    rank.add_argument("checkpoints", nargs="+", help="files or folders, each as PATH or NAME=PATH")
    rank.add_argument("--network", required=True, metavar=FACTORY, help="() -> torch.nn.Module")
    rank.add_argument("--data", required=True, metavar=FACTORY, help="() -> (inputs, targets)")
    rank.add_argument(
        "--held-out", metavar=FACTORY, help="() -> (inputs, targets); default no such columns"
    )
    rank.add_argument(
        "--baselines", action="store_true", help="add the cheap criteria; default off"
    )
    rank.add_argument(
        "--features", help="module whose input counts as the features; default the last linear"
    )
    rank.add_argument("--head", help=argparse.SUPPRESS)  # what --features was called
    rank.add_argument(
        "--save-to",
        metavar="FOLDER",
        help="new, for the draws, which `ppl-fe diagnose FOLDER` checks; default not kept",
    )
    rank.add_argument(
        "--output", metavar="FILE", help="table as .csv or .json; default printed only"
    )
    _add_chains(rank.add_argument_group("the chains"))
    return rank


def _add_chains(group: Any) -> None:
    # The defaults are those of `ChainOptions`, which takes seconds to import; a test compares them.
    group.add_argument(
        "--likelihood", choices=LIKELIHOODS, help="normal is of sd 1; default categorical"
    )
    group.add_argument(
        "--localization",
        type=float,
        help="gamma, in 1/weight squared: larger is narrower and sooner sampled; default 1.0",
    )
    group.add_argument(
        "--inverse-temperature", type=float, help="beta, without unit; default 1/log n"
    )
    group.add_argument("--batch-size", type=int, help="examples a step, 0 for all; default auto")
    group.add_argument("--step-size", type=float, help="epsilon, weight squared; default auto")
    group.add_argument("--num-chains", type=int, help="of each checkpoint; default 4")
    group.add_argument(
        "--until",
        choices=["order", "mixed"],
        help="stop when the best is clear, or when every checkpoint is done by itself; "
        "default order, where no length is given",
    )
    group.add_argument("--num-samples", type=int, help="kept draws of a chain; default as needed")
    group.add_argument("--warmup-steps", type=int, help="steps before the first; default as needed")
    group.add_argument("--thinning", type=int, help="steps of a kept draw; default as needed")
    group.add_argument("--seed", type=int, help="of all that is random; default 0")


def run(given: dict[str, Any]) -> int:
    """Rank, print and write the table; 1 if a row has no number or none can be trusted."""
    output = given.pop("output", None)
    if output is not None:
        check_table_name(output)
        check_output("--output", output)
    if "save_to" in given:
        check_new_folder("--save-to", given["save_to"])
    named = _by_name(given.pop("checkpoints"))
    for path in named.values():
        require_path("checkpoints", path)
    network = find_factory("--network", given.pop("network"))
    rows = find_factory("--data", given.pop("data"))
    held_out = find_factory("--held-out", given.pop("held_out")) if "held_out" in given else None
    from ppl_fe.free_energy.ranking import rank_checkpoints

    module, data = network(), rows()
    if held_out is not None:
        given["held_out"] = held_out()
    if "head" in given:
        print("ppl-fe rank: --head is called --features now", file=sys.stderr)
        given.setdefault("features", given.pop("head"))
    if given.get("batch_size") == 0:
        given["batch_size"] = None
    table = rank_checkpoints(named, module, data, progress_bar=sys.stderr.isatty(), **given)
    print(table)
    if output is not None:
        write_table(table, Path(output))
    return 0 if _trusted(table) else 1


def _trusted(table: pd.DataFrame) -> bool:
    """Say whether every row has an error bar, and one at least is of chains at their minimum."""
    below = table["llc"] + 2 * table["llc_mcse"] < 0  # L(w*): its WBIC is the loss and little more
    return bool(table["p_best"].notna().all() and not below.all())


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
