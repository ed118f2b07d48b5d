"""`ppl-fe finetune`: train the selected parameters alone, and keep what changed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_fe.cli.factories import load_factory
from ppl_fe.cli.task import add_task, check_output, load_network

if TYPE_CHECKING:
    from torch import Tensor

    from ppl_fe.finetuning.train.finetune_result import FinetuneResult
    from ppl_fe.networks.flat import FlatNetwork

# Those of `LEARNING_RATES` in training.py, which takes seconds to import; a test compares them.
METHODS = ("full", "head", "lora", "mask")


def add(commands: Any) -> None:
    """Add the command and its options."""
    tune = commands.add_parser(
        "finetune",
        help="fine-tune the selected parameters and keep a small file of what changed",
        description="Train the parameters that `ppl-fe select` chose, and those of a fresh head, "
        "from the pretrained checkpoint; write the new values for fe.apply_delta.",
        argument_default=argparse.SUPPRESS,  # what is not given keeps the Python default
    )
    add_task(tune)
    tune.add_argument("--selection", metavar="FILE", help="of `ppl-fe select`, for method mask")
    tune.add_argument("--method", choices=METHODS, help="default mask")
    tune.add_argument(
        "--validation", metavar="MODULE:FACTORY", help="() -> data; its best state is kept"
    )
    tune.add_argument("--optimizer", help="adamw or sgd")
    tune.add_argument("--learning-rate", type=float, help="default 1e-3, and 5e-5 for full")
    tune.add_argument("--num-steps", type=int)
    tune.add_argument("--num-epochs", type=int, help="default 3")
    tune.add_argument("--weight-decay", type=float, help="of trained parameters only")
    tune.add_argument("--schedule", help="linear or constant")
    tune.add_argument("--evaluate-every", type=int, help="steps between looks at the validation")
    tune.add_argument("--patience", type=int, help="looks without a better loss")
    tune.add_argument("--lora-rank", type=int)
    tune.add_argument("--output", required=True, help="file for the delta (.safetensors)")
    tune.set_defaults(run=run)


def run(given: dict[str, Any]) -> int:
    """Fine-tune, write the delta, and print what came of it."""
    from ppl_fe.finetuning.train.training import finetune
    from ppl_fe.networks.deltas import save_delta

    output, selected = given.pop("output"), given.pop("selection", None)
    check_output("--output", output)
    method = given.get("method", "mask")
    if (selected is None) == (method == "mask"):
        needs = "needs" if selected is None else "takes no"
        raise ValueError(f"--method {method} {needs} --selection, a file of `ppl-fe select`")
    network = load_network(given)
    if selected is not None:
        given["mask"] = _mask(selected, network, given.get("head"))
    data = load_factory("--data", given.pop("data"))
    if "validation" in given:
        given["validation"] = load_factory("--validation", given["validation"])
    tuned = finetune(network, data, progress_bar=sys.stderr.isatty(), **given)
    save_delta(tuned, output)
    print(_report(tuned, Path(output)))
    return 0


def _mask(path: str, network: FlatNetwork, head: str | None) -> Tensor:
    from ppl_fe.finetuning.selection import load_selection
    from ppl_fe.finetuning.train.trained_entries import head_names

    selection, names = load_selection(path, network), head_names(network, head)
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
