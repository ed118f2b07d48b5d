"""What the demonstration found: as text, as files, as a picture."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from ppl_fe.demo.labelled_choice import CRITERION, NEW, NUM_LABELS
from ppl_fe.plots import plot_transfer

MARK = "verdict.txt"  # by which a folder is known as an earlier demonstration

LESSON = (
    "When to trust the criterion: it ranks by how simple a solution is on the pretraining data. "
    "That can help where downstream data look like pretraining data. On new classes it can "
    "mislead, since the simplest solutions have thrown away features that the new task needs. "
    "Measure a correlation on a few checkpoints of your own, beside the validation loss, before "
    "you choose by it."
)


@dataclass(frozen=True)
class Report:
    """The ranking with its downstream accuracies, the correlations, and the verdicts in words.

    Attributes:
        table: of `rank_checkpoints`, with a column of accuracies and one of errors a task.
        correlations: task -> criterion's correlations with its accuracy.
        verdicts: task -> sentences.
        choice: the checkpoint chosen by a few labels, and what it was worth, in sentences.
        seconds: what it all took.
        folder: where table.csv, correlations.csv, verdict.txt, transfer.png and draws/ lie.
    """

    table: pd.DataFrame
    correlations: Mapping[str, pd.DataFrame]
    verdicts: Mapping[str, str]
    choice: str
    seconds: float
    folder: Path

    def __str__(self) -> str:
        tasks = list(self.correlations)
        shown = self.table[["wbic", "wbic_mcse", "llc", "llc_mcse", "r_hat", "ess", *tasks]]
        parts = ["Checkpoints, best (lowest WBIC) first", shown.round(3).to_string()]
        noted = self.table[self.table["note"] != ""]
        parts += [textwrap.fill(f"{name}: {note}", 100) for name, note in noted["note"].items()]
        for task, frame in self.correlations.items():
            parts += [
                f"\nCorrelation with accuracy on {task} (negative = as claimed), 95 % intervals",
                _with_intervals(frame).to_string(),
                textwrap.fill(self.verdicts[task], 100),
            ]
        parts += [
            "\nThe training losses were matched, so they can predict nothing and are left out.",
            textwrap.fill(LESSON, 100),
            "\n" + textwrap.fill(self.choice, 100),
            f"\nWrote {self.folder}/ in {self.seconds:.0f} s: table.csv, correlations.csv, "
            "verdict.txt, transfer.png, draws/",
        ]
        return "\n".join(parts)

    def save(self, folder: Path) -> None:
        """Write the tables, the text and the picture."""
        self.table.to_csv(folder / "table.csv")
        pd.concat(self.correlations, names=["task"]).to_csv(folder / "correlations.csv")
        shown = [(task, "wbic") for task in self.correlations] + [(NEW, CRITERION)]
        figure = Figure(figsize=(4.5 * len(shown), 3.8), layout="constrained")
        every_axes = figure.subplots(1, len(shown), squeeze=False)[0]
        groups = self.table["learning_rate"].tolist()
        for axes, (task, criterion) in zip(every_axes, shown, strict=True):
            plot_transfer(self.table, task, criterion=criterion, groups=groups, axes=axes)
            row = self.correlations[task].loc[criterion]
            axes.set_title(
                f"{task}: r = {row['pearson']:+.2f} "
                f"[{row['pearson_low']:+.2f}, {row['pearson_high']:+.2f}]"
            )
        every_axes[-1].set_xlabel(f"{CRITERION}, of {NUM_LABELS} labels of the task")
        every_axes[-1].legend(title="learning rate", frameon=False)
        figure.savefig(folder / "transfer.png", dpi=150)
        (folder / MARK).write_text(f"{self}\n", encoding="utf-8")


@contextmanager
def write_report(output: str | Path) -> Iterator[Path]:
    """Give a folder to write into, which takes the place of `output` only when all is written."""
    target = Path(output)
    if target.exists() and not (target / MARK).is_file():
        raise FileExistsError(
            f"output: {target} exists and is not an earlier demonstration; give another folder"
        )
    aside = target.with_name(f"{target.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    if target.exists():
        shutil.rmtree(target)
    aside.rename(target)


def _with_intervals(frame: pd.DataFrame) -> pd.DataFrame:
    shown = {}
    for method in ("pearson", "spearman"):
        columns = frame[[method, f"{method}_low", f"{method}_high"]].to_numpy(float)
        shown[method] = [f"{r:+.2f} [{low:+.2f}, {high:+.2f}]" for r, low, high in columns]
    return pd.DataFrame(shown, index=frame.index)
