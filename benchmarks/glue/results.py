"""Runs as JSON lines, appended as they end; what was chosen among them, and the table."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Key = tuple[str, str, int, float, str]


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that change with any setting.

    Example:
        >>> settings_hash({"a": 1, "b": 2}) == settings_hash({"b": 2, "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def revision(folder: Path) -> str:
    """The git commit of a folder, with "+changes" if files differ from it; "unknown" without."""
    try:
        commit, status = (
            subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
            ).stdout.strip()
            for arguments in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + "+changes" * bool(status)


def key(record: Mapping[str, Any]) -> Key:
    """What makes a run the same as another: it is not run twice."""
    return (
        record["task"],
        record["rule"],
        record["seed"],
        record["rate"],
        record["settings_hash"],
    )


def read(path: Path) -> list[Record]:
    """All runs of a results file; none if it is not there.

    Raises:
        ValueError: a line that is no JSON. A last line without its end, left by a run that was
            stopped as it wrote, is passed over.
    """
    records: list[Record] = []
    if not path.exists():
        return records
    for number, line in enumerate(path.read_text().splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            break
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON ({error}); mend it") from error
    return records


def append(path: Path, record: Record) -> None:
    """Add a run as one line; a last line without its end is cut off first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
        file.write(json.dumps(record).encode() + b"\n")


def chosen(records: Sequence[Record]) -> dict[tuple[str, str], float]:
    """(task, rule) -> the learning rate of the highest validation metric at the first seed.

    Ties, frequent on few validation rows, go to the lower validation loss. The test set has no
    part in it. Only rates that all rules of a task have tried count, by their place in the search,
    so that a search under way favours nobody; a run that failed has been tried and cannot win.
    """
    best: dict[tuple[str, str], float] = {}
    for task in dict.fromkeys(record["task"] for record in records):
        own = [record for record in records if record["task"] == task]
        first = min(record["seed"] for record in own)
        tried: dict[str, dict[int, Record]] = {}
        for record in own:
            if record["seed"] == first:
                tried.setdefault(record["rule"], {})[record["rate_index"]] = record
        common = set.intersection(*(set(runs) for runs in tried.values()))
        for rule, runs in tried.items():
            sound = [runs[index] for index in sorted(common) if "error" not in runs[index]]
            if sound:
                best[task, rule] = max(sound, key=_merit)["rate"]
    return best


def searched_to_the_edge(records: Sequence[Record]) -> set[tuple[str, str]]:
    """The (task, rule) whose rate is the lowest or the highest that its search tried.

    Rates that other rules have not tried yet count here: they say that the search goes on.
    """
    best, found = chosen(records), set()
    for task, rule in best:
        own = [record for record in records if (record["task"], record["rule"]) == (task, rule)]
        first = min(record["seed"] for record in own)
        rates = {record["rate"] for record in own if record["seed"] == first}
        if len(rates) > 1 and best[task, rule] in (min(rates), max(rates)):
            found.add((task, rule))
    return found


def _merit(record: Record) -> tuple[float, float]:
    metrics = dict(record["validation"])
    loss = metrics.pop("loss")
    return next(iter(metrics.values())), -loss


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and its standard error over seeds; NaN for one seed.

    Example:
        >>> mean_and_error([1.0, 3.0])
        (2.0, 1.0)
    """
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


def tables(path: Path) -> list[str]:
    """One table for each budget in a results file."""
    groups: dict[str, list[Record]] = {}
    for record in read(path):
        groups.setdefault(json.dumps(record["settings"]["budget"]), []).append(record)
    lines = []
    for budget, records in groups.items():
        revisions = ", ".join(dict.fromkeys(record["revision"] for record in records))
        failed = sum("error" in record for record in records)
        lines += [
            f"budget {budget}; {len(records)} runs, {failed} failed; code {revisions}",
            "first metric on the test set in %, ± standard error over (seeds); the learning rate",
            "of each rule by validation at seed 0; * where it is the lowest or highest one tried",
            *table(records),
            "",
        ]
    return lines


def table(records: Sequence[Record]) -> list[str]:
    """A row a rule, a column a task: the first test metric in %, ± standard error (seeds).

    A star is where the search ended at its edge.
    The last columns are the numbers trained outside the head and the seconds of the two stages,
    medians over the runs.
    """
    tasks = list(dict.fromkeys(record["task"] for record in records))
    rules = list(dict.fromkeys(record["rule"] for record in records))
    best, edges = chosen(records), searched_to_the_edge(records)
    titles = [f"{task} {_metric(records, task)}" for task in tasks]
    lines = [
        f"{'':18}" + "".join(f"{title:>22}" for title in [*titles, "trained", "stage 1 s", "2 s"])
    ]
    for rule in rules:
        cells = []
        for task in tasks:
            found = {
                record["seed"]: 100 * next(iter(record["test"].values()))
                for record in records
                if (record["task"], record["rule"]) == (task, rule)
                and record["rate"] == best.get((task, rule))
                and "error" not in record
            }
            cells.append(_cell(list(found.values())) + "*" * ((task, rule) in edges))
        own = [record for record in records if record["rule"] == rule and "error" not in record]
        for name in ("trained", "selection_seconds", "training_seconds"):
            values = [record[name] for record in own]
            cells.append(f"{statistics.median(values):.0f}" if values else "-")
        lines.append(f"{rule:18}" + "".join(f"{cell:>22}" for cell in cells))
    return lines


def _metric(records: Sequence[Record], task: str) -> str:
    """The name of a task's first metric; empty if every run of it failed."""
    tests = [record["test"] for record in records if record["task"] == task and "test" in record]
    return str(next(iter(tests[0]))) if tests else ""


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean, error = mean_and_error(values)
    if math.isnan(error):
        return f"{mean:.1f} ({len(values)})"
    return f"{mean:.1f} ± {error:.1f} ({len(values)})"
