"""A task with the pretrained network, for the comparison itself."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

import torch

import ppl_fe as fe
from glue.metrics import measure
from glue.rules import Problem
from glue.tasks import TASKS, Data, read_task, split
from glue.transformer import TextClassifier


def real_problem(data: Path, package: Path, task: str, seed: int) -> Problem:
    """A task at one seed, with the pretrained network and a fresh head."""
    training, validation = split(_read(data, package, task)[0], seed)
    module = TextClassifier(TASKS[task].num_classes, seed, weights=package / "model.safetensors")
    return Problem(
        network=fe.FlatNetwork(module, autocast=torch.bfloat16),
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
