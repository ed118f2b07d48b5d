"""A task and a network of seconds, for `--quick`: no package and no data needed."""

from __future__ import annotations

from functools import partial

import torch

import ppl_fe as fe
from glue.metrics import measure
from glue.rules import Problem
from glue.tasks import Data, split
from glue.transformer import Shape, TextClassifier

SHAPE = Shape(vocabulary=20, positions=8, width=16, inner=32, heads=2, layers=1)


def random_task(size: int, seed: int) -> Data:
    """Six random tokens and two of padding; class 1 where token 7 is among them."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, SHAPE.vocabulary, (size, 8), generator=generator)
    ids[:, 6:] = 0
    targets = (ids == 7).any(1).long()
    return {"input_ids": ids, "token_type_ids": torch.zeros_like(ids)}, targets


def quick_problem(task: str, seed: int) -> Problem:
    """The task, whatever its name, at one seed."""
    training, validation = split(random_task(80, 0), seed)
    return Problem(
        network=fe.FlatNetwork(TextClassifier(2, seed, SHAPE)),
        training=training,
        validation=validation,
        test=random_task(40, 1),
        likelihood="categorical",
        measure=partial(measure, ("accuracy", "f1")),
    )
