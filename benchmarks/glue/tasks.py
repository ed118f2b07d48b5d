"""Seven tasks of GLUE and SuperGLUE: read, tokenised once, split as in the published protocol.

The original training set is cut 90/10 into training and validation, anew for each seed; the
original development set is the test set (of MRPC the original test set: no other is at hand).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

Data = tuple[dict[str, Tensor], Tensor]
QUESTIONS = {"cause": "What was the cause?", "effect": "What happened as a result?"}


@dataclass(frozen=True)
class Task:
    """One data set.

    Attributes:
        name: of the task and of its folder.
        columns: one or two with the text.
        metrics: see `glue.metrics`; rules are compared by the first.
        num_classes: K of the head; 1 for a score, and for a choice, where each of the candidates
            is scored.
        max_length: tokens of a row, [CLS] and [SEP] counted; the longer text is cut first. Short,
            because the time of a step goes with it. It cuts 64 % of CB's training rows, 12 % of
            RTE's, and at most 3.4 % of any other's.
        kept: which end of a text that is cut stays.
        train, test: file names; several test files are joined.
    """

    name: str
    columns: tuple[str, ...]
    metrics: tuple[str, ...]
    num_classes: int
    max_length: int
    kept: Literal["start", "end"] = "start"
    train: str = "train"
    test: tuple[str, ...] = ("dev",)

    @property
    def likelihood(self) -> str:
        """ "normal" with unit scale for the scores of STS-B, else "categorical"."""
        return "normal" if "pearson" in self.metrics else "categorical"


# In CB the hypothesis is about the end of the premise, a dialogue.
TASKS = {
    task.name: task
    for task in (
        Task("cb", ("premise", "hypothesis"), ("accuracy",), 3, 64, kept="end"),
        Task("copa", ("premise", "choice"), ("accuracy",), 1, 32),
        Task("rte", ("premise", "hypothesis"), ("accuracy",), 2, 128),
        Task("mrpc", ("sentence1", "sentence2"), ("accuracy", "f1"), 2, 80, test=("test",)),
        Task("stsb", ("sentence1", "sentence2"), ("pearson", "spearman"), 1, 64),
        Task("sst2", ("sentence",), ("accuracy",), 2, 48, train="train_sentences"),
        Task(
            "cola",
            ("sentence",),
            ("matthews",),
            2,
            32,
            test=("dev_in_domain", "dev_out_of_domain"),
        ),
    )
}
MIDDLE_SCORE = 2.5  # of STS-B's 0..5, taken off, so that a head of zeros starts in the middle


def read_task(task: Task, folder: Path, tokenizer: Any) -> tuple[Data, Data]:
    """Read and tokenise a task: the whole training set, and the test set.

    Args:
        task: one of `TASKS`.
        folder: with a folder a task, each of gzipped TSV files.
        tokenizer: a `tokenizers.Tokenizer`; its truncation and padding are set here.

    Returns:
        Twice ({"input_ids": (N, L), "token_type_ids": (N, L)}, targets (N,)); of COPA the inputs
        are (N, 2, L), one row a choice.
    """
    tokenizer.enable_truncation(
        task.max_length, direction="right" if task.kept == "start" else "left"
    )
    tokenizer.enable_padding(length=task.max_length, pad_id=0)
    parts = []
    for files in ((task.train,), task.test):
        tables = [
            pd.read_csv(
                folder / task.name / f"{file}.tsv.gz", sep="\t", quoting=3, keep_default_na=False
            )
            for file in files
        ]
        parts.append(encode(task, pd.concat(tables, ignore_index=True), tokenizer))
    return parts[0], parts[1]


def encode(task: Task, table: pd.DataFrame, tokenizer: Any) -> Data:
    """Turn rows of text into token ids and targets."""
    if task.name == "copa":
        asked = table["premise"] + " " + table["question"].map(QUESTIONS)
        rows = [
            (premise, choice)
            for premise, *choices in zip(asked, table["choice1"], table["choice2"], strict=True)
            for choice in choices
        ]
    elif len(task.columns) == 1:
        rows = list(table[task.columns[0]])
    else:
        rows = list(zip(*(table[column] for column in task.columns), strict=True))
    encoded = tokenizer.encode_batch(rows)
    inputs = {
        "input_ids": torch.tensor([row.ids for row in encoded]),
        "token_type_ids": torch.tensor([row.type_ids for row in encoded]),
    }
    if task.name == "copa":
        inputs = {name: tensor.reshape(-1, 2, tensor.shape[1]) for name, tensor in inputs.items()}
    labels = table["label"].to_numpy()
    if task.likelihood == "normal":
        return inputs, torch.tensor(labels, dtype=torch.float32) - MIDDLE_SCORE
    return inputs, torch.tensor(labels)


def split(data: Data, seed: int) -> tuple[Data, Data]:
    """Cut 90/10 into training and validation, at random.

    Example:
        >>> data = {"input_ids": torch.arange(20)[:, None]}, torch.arange(20)
        >>> (_, training), (_, validation) = split(data, seed=0)
        >>> len(training), len(validation), len({*training.tolist(), *validation.tolist()})
        (18, 2, 20)
    """
    size = len(data[1])
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    cut = size - size // 10
    return take(data, order[:cut]), take(data, order[cut:])


def take(data: Data, rows: Tensor) -> Data:
    """Some rows of the inputs and targets."""
    return {name: tensor[rows] for name, tensor in data[0].items()}, data[1][rows]
