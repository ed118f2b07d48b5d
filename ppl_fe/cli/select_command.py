"""`ppl-fe select`: which parameters of a pretrained network to update."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ppl_fe.cli.factories import load_factory
from ppl_fe.cli.task import add_task, check_output, load_network
from ppl_fe.files import atomic_write
from ppl_fe.finetuning.select import METHODS, select_parameters
from ppl_fe.finetuning.selection import Selection


def add(commands: Any) -> None:
    """Add the command and its options."""
    select = commands.add_parser(
        "select",
        help="select the parameters to update",
        description="Rank a pretrained network's parameters by how far a task's posterior lets "
        "them move (BayesTune), and write the selected ones for `ppl-fe finetune`.",
        argument_default=argparse.SUPPRESS,  # what is not given keeps the Python default
    )
    add_task(select)
    select.add_argument("--method", choices=METHODS, help="default bayestune")
    select.add_argument(
        "--sparsity", type=_share, help="share to select, or knee; default 0.005", metavar="P"
    )
    select.add_argument("--threshold", type=float, help="select scores above it instead")
    select.add_argument("--groups", choices=["layer", "row"], help="one scale for each of these")
    select.add_argument("--data-size", type=float, help="what the data count for; default n")
    select.add_argument("--step-size", type=float, help="epsilon; default automatic")
    for name in ("num-chains", "num-samples", "warmup-steps", "thinning"):
        select.add_argument(f"--{name}", type=int)
    select.add_argument("--num-steps", type=int, help="of movement")
    select.add_argument("--learning-rate", type=float, help="of movement and paper")
    select.add_argument("--count-top", action="store_true", help="count each draw's largest scales")
    select.add_argument("--output", required=True, help="file for the selection (.safetensors)")
    select.add_argument("--plot", metavar="FILE", help="picture of the sorted scores, .png say")
    select.set_defaults(run=run)


def run(given: dict[str, Any]) -> int:
    """Select, write, and print the selection and its table by layer."""
    output, picture = given.pop("output"), given.pop("plot", None)
    check_output("--output", output)
    if picture is not None:
        _check_picture(picture)
    network = load_network(given)
    data = load_factory("--data", given.pop("data"))
    selection = select_parameters(network, data, progress_bar=sys.stderr.isatty(), **given)
    selection.save(output)
    print(selection, selection.by_layer().to_string(float_format="{:.2%}".format), sep="\n\n")
    if picture is not None:
        _draw(selection, Path(picture))
    return 0


def _share(text: str) -> float | str:
    return text if text == "knee" else float(text)


def _check_picture(path: str) -> None:
    check_output("--plot", path)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("--plot needs matplotlib: pip install 'ppl-fe[plots]'") from error
    kinds = Figure().canvas.get_supported_filetypes()
    if Path(path).suffix[1:].lower() not in kinds:
        raise ValueError(f"--plot must end in one of .{', .'.join(sorted(kinds))}, got {path!r}")


def _draw(selection: Selection, path: Path) -> None:
    (first, *_) = np.ravel(np.asarray(selection.plot(), dtype=object))
    with atomic_write(path) as aside:
        first.figure.savefig(aside, format=path.suffix[1:].lower(), bbox_inches="tight")
