"""`ppl-fe select`: which parameters of a pretrained network to update."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_fe.cli.parser import Parser
from ppl_fe.cli.paths import check_output, require_path
from ppl_fe.cli.task import add_task, find_task, load_network
from ppl_fe.files import atomic_write

if TYPE_CHECKING:
    from ppl_fe.finetuning.scoring import Rule
    from ppl_fe.finetuning.selection import Selection

# The shorthands of `ppl_fe.finetuning.rules`, which takes seconds to import; a test compares them.
RULES = (
    "bayestune",
    "collapsed",
    "released_code",
    "gradient",
    "gradient_squared",
    "gradient_to_weight",
    "per_neuron",
    "movement",
    "magnitude",
    "low_rank",
    "bias_only",
    "random",
)
FORMER = {"paper": "released_code"}  # of --method, which goes with the next release
DEFAULT_BATCH = 32  # of most rules, whose file takes seconds to import likewise
DESCRIPTION = """
Rank a pretrained network's parameters by how far a task's posterior lets them move
(BayesTune), or by another rule, and write the selected ones for `ppl-fe finetune`.

Exit status 0: written, 2: bad input. Read the notes that are printed with the selection:
they say whether chains agree on it, and whether another seed would select others.
"""
DURATION = (
    "BayesTune: 3,000 minibatch gradients, of 2 chains with 500 steps of warm-up and 100 draws of "
    "10 steps each; movement: 500; gradient rules: one pass over the data; magnitude, bias_only "
    "and random: none. A bar shows what is left."
)
EXAMPLE = """
ppl-fe select base.safetensors --network mine:network --data mine:task --head classifier \\
  --sparsity 0.005 --parameters linear --output selection.safetensors
"""


def parser() -> Parser:
    """Make the command's options."""
    select = Parser("select", description=DESCRIPTION, duration=DURATION, example=EXAMPLE)
    add_task(select, DEFAULT_BATCH, "what may be chosen")
    select.add_argument(
        "--rule",
        choices=RULES,
        help="what to rank by; default bayestune. On a pretrained transformer gradient did as well "
        "for a fifth of the time (docs/pages/does_bayestune_help.md)",
    )
    select.add_argument("--method", choices=(*RULES, *FORMER), help=argparse.SUPPRESS)
    select.add_argument(
        "--sparsity",
        type=share_or_knee,
        help="share to select, or knee; default 0.005",
        metavar="P",
    )
    select.add_argument(
        "--threshold", type=float, help="select scores above it instead; default none"
    )
    select.add_argument(
        "--output", required=True, metavar="FILE", help="for the selection (.safetensors)"
    )
    select.add_argument(
        "--plot", metavar="FILE", help="picture of the sorted scores, .png say; default none"
    )
    _add_settings(select.add_argument_group("settings of the rule"))
    return select


def _add_settings(group: Any) -> None:
    group.add_argument(
        "--groups", choices=["layer", "row"], help="one scale for each of these; default no groups"
    )
    group.add_argument(
        "--data-size",
        type=number_or_auto,
        help="what the data count for, n or another number; default auto, released_code 1e12",
        metavar="N",
    )
    group.add_argument(
        "--gradient",
        choices=["auto", "minibatch", "control_variate"],
        help="how it is estimated; default auto",
    )
    group.add_argument("--step-size", type=float, help="epsilon; default automatic")
    group.add_argument("--num-chains", type=int, help="default 2")
    group.add_argument("--num-samples", type=int, help="kept draws of a chain; default 100")
    group.add_argument("--warmup-steps", type=int, help="steps before the first; default 500")
    group.add_argument("--thinning", type=int, help="steps that a kept draw costs; default 10")
    group.add_argument(
        "--count-top",
        action="store_true",
        help="count how often each is among the largest; default off",
    )
    group.add_argument("--num-steps", type=int, help="of movement; default 500")
    group.add_argument("--rank", type=int, help="of low_rank; default 128")
    group.add_argument(
        "--learning-rate", type=float, help="default of movement 5e-5, of released_code 1e-4"
    )


def run(given: dict[str, Any]) -> int:
    """Select, write, and print the selection and its table by layer."""
    output, picture = given.pop("output"), given.pop("plot", None)
    check_output("--output", output)
    require_path("base", given["base"])
    if picture is not None:
        _check_picture(picture)
    find_task(given, "network", "data")
    from ppl_fe.finetuning.select import select_parameters

    rule = make_rule(given)
    network = load_network(given)
    data = given.pop("data")()
    selection = select_parameters(
        network, data, rule=rule, progress_bar=sys.stderr.isatty(), **given
    )
    selection.save(output)
    print(selection, selection.by_layer().to_string(float_format="{:.2%}".format), sep="\n\n")
    if picture is not None:
        _draw(selection, Path(picture))
    return 0


def make_rule(given: dict[str, Any]) -> Rule:
    """Make the rule of these options, and take it and its settings out of them.

    Raises:
        ValueError: a setting that the rule does not have, or one out of range.
    """
    from ppl_fe.finetuning.rules import shorthands

    former = given.pop("method", None)
    if former is not None:
        name = FORMER.get(former, former)
        print(f"ppl-fe select: --method is called --rule now: --rule {name}", file=sys.stderr)
        given.setdefault("rule", name)
    name = given.pop("rule", "bayestune")
    known = {setting for rule in RULES for setting in shorthands.settings_of(rule)}
    settings = {setting: given.pop(setting) for setting in known & given.keys()}
    foreign = sorted(settings.keys() - shorthands.settings_of(name))
    if foreign and former is None:  # --method ignored them
        options = ", ".join(f"--{setting.replace('_', '-')}" for setting in foreign)
        raise ValueError(f"the rule {name} has no {options}")
    return shorthands.RULES[name](**{k: v for k, v in settings.items() if k not in foreign})


def share_or_knee(text: str) -> float | str:
    return _number_or("knee", text, "a share such as 0.005")


def number_or_auto(text: str) -> float | str:
    return _number_or("auto", text, "a number such as 1000")


def _number_or(word: str, text: str, what: str) -> float | str:
    try:
        return text if text == word else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be {what}, or {word}, got {text!r}") from error


def _check_picture(path: str) -> None:
    check_output("--plot", path)
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("--plot needs matplotlib: pip install 'ppl-fe[plots]'") from error
    matplotlib.use("agg")  # a picture for a file opens no window
    kinds = Figure().canvas.get_supported_filetypes()
    if Path(path).suffix[1:].lower() not in kinds:
        raise ValueError(f"--plot must end in one of .{', .'.join(sorted(kinds))}, got {path!r}")


def _draw(selection: Selection, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure = selection.plot()[0].figure
    with atomic_write(path) as aside:
        figure.savefig(aside, format=path.suffix[1:].lower(), bbox_inches="tight")
    plt.close(figure)
