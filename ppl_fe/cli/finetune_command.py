"""`ppl-fe finetune`: train the selected parameters alone, and keep what changed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_fe.cli.factories import FACTORY
from ppl_fe.cli.parser import Parser
from ppl_fe.cli.paths import check_output, require_path
from ppl_fe.cli.task import add_task, find_task, load_network

if TYPE_CHECKING:
    from torch import Tensor

    from ppl_fe.finetuning.train.finetune_result import FinetuneResult
    from ppl_fe.networks.flat import FlatNetwork

# Those of `LEARNING_RATES` in training.py, which takes seconds to import; a test compares them.
METHODS = ("full", "head", "lora", "mask")
OPTIMIZERS, SCHEDULES = ("adamw", "sgd"), ("linear", "constant")
DEFAULT_BATCH = 16
DESCRIPTION = """
Train the parameters that `ppl-fe select` chose, and those of a fresh head, from the
pretrained checkpoint; write the new values for fe.apply_delta.

Exit status 0: written, 2: bad input.
"""
DURATION = (
    "As long as training goes: 3 passes over the data by default, in batches of 16, and fewer "
    "where the loss on --validation has not fallen for 5 looks. A bar shows what is left."
)
EXAMPLE = """
ppl-fe finetune base.safetensors --network mine:network --data mine:task --head classifier \\
  --selection selection.safetensors --validation mine:held_out --output task.safetensors
"""


def parser() -> Parser:
    """Make the command's options."""
    tune = Parser("finetune", description=DESCRIPTION, duration=DURATION, example=EXAMPLE)
    add_task(tune, DEFAULT_BATCH, "what the methods full and lora train")
    tune.add_argument(
        "--selection", metavar="FILE", help="of `ppl-fe select`, which the method mask needs"
    )
    tune.add_argument("--method", choices=METHODS, help="what is trained; default mask")
    tune.add_argument(
        "--validation",
        metavar=FACTORY,
        help="() -> data, the best state on it is kept; default none",
    )
    tune.add_argument("--optimizer", choices=OPTIMIZERS, help="default adamw")
    tune.add_argument("--learning-rate", type=float, help="default 1e-3, and 5e-5 for full")
    tune.add_argument("--num-steps", type=int, help="updates; default by the passes")
    tune.add_argument("--num-epochs", type=int, help="passes over the data; default 3")
    tune.add_argument("--weight-decay", type=float, help="of trained parameters only; default 0.0")
    tune.add_argument("--schedule", choices=SCHEDULES, help="default linear")
    tune.add_argument(
        "--evaluate-every",
        type=int,
        help="steps between looks at the validation; default a pass, or a fiftieth of all steps",
    )
    tune.add_argument("--patience", type=int, help="looks without a better loss; default 5")
    tune.add_argument("--lora-rank", type=int, help="of the method lora; default 8")
    tune.add_argument(
        "--output", required=True, metavar="FILE", help="for the delta (.safetensors)"
    )
    return tune


def run(given: dict[str, Any]) -> int:
    """Fine-tune, write the delta, and print what came of it."""
    output, selected = given.pop("output"), given.pop("selection", None)
    check_output("--output", output)
    require_path("base", given["base"])
    method = given.get("method", "mask")
    if (selected is None) == (method == "mask"):
        needs = "needs" if selected is None else "takes no"
        raise ValueError(f"--method {method} {needs} --selection, a file of `ppl-fe select`")
    if selected is not None:
        require_path("--selection", selected)
    find_task(given, "network", "data", "validation")
    from ppl_fe.finetuning.train.training import finetune
    from ppl_fe.networks.deltas import save_delta

    network = load_network(given)
    if selected is not None:
        given["mask"] = _mask(selected, network, given.get("head"))
    data = given.pop("data")()
    if "validation" in given:
        given["validation"] = given["validation"]()
    tuned = finetune(network, data, progress_bar=sys.stderr.isatty(), **given)
    save_delta(tuned, output)
    print(_report(tuned, Path(output)))
    return 0


def _mask(path: str, network: FlatNetwork, head: list[str] | None) -> Tensor:
    from ppl_fe.finetuning.selection import load_selection

    selection, names = load_selection(path, network), network.head_names(head)
    if selection.head != names:
        raise ValueError(
            f"--head: {path} was made with the head {list(selection.head)}, not with "
            f"{list(names)}; give the same --head to both commands"
        )
    return selection.mask


def _report(tuned: FinetuneResult, path: Path) -> str:
    history = tuned.history
    looks = history.dropna(subset=["validation_loss"])
    if len(looks):
        first, best = looks.iloc[0], looks[looks["step"] == tuned.step].iloc[0]
        losses = f"validation loss {first['validation_loss']:.4f} -> {best['validation_loss']:.4f}"
        if first.notna()["validation_accuracy"]:
            before, after = (100 * row["validation_accuracy"] for row in (first, best))
            losses += f", accuracy {before:.1f} % -> {after:.1f} %"
        losses += f"; best after step {tuned.step} of {int(history['step'].max())}"
    else:
        loss = history["loss"]
        few = max(1, len(loss) // 10)
        losses = f"training loss {loss[:few].mean():.4f} -> {loss[-few:].mean():.4f}"
        losses += f", means over {few} batches, after {tuned.step} steps"
    count, size = int(tuned.mask.sum()), len(tuned.mask)
    heads = sum(tensor.numel() for tensor in tuned.head.values())
    trained = f"{count:,} of {size - heads:,} pretrained parameters ({count / (size - heads):.3%})"
    if heads:
        trained += f" and {heads:,} of the head"
    return f"{losses}\n{trained} in {path}, {path.stat().st_size:,} bytes"
