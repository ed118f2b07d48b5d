"""The order of the runs, what is done already, and the masks kept for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ppl_fe as fe
from glue.results import Record, append, chosen, key, read, revision, settings_hash
from glue.rules import METHODS, Budget, Problem, choose, selection_settings, train_and_measure

Say = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """One fine-tuning, at learning rate number `rate_index` of its rule's search."""

    task: str
    rule: str
    seed: int
    rate_index: int


def search(task: str, rules: Sequence[str], seed: int, num_rates: int) -> Iterator[Run]:
    """The first seed: rate by rate, each of them for all rules, so that it can stop anywhere.

    Example:
        >>> [(run.rule, run.rate_index) for run in search("cb", ["full", "lora"], 0, 6)][:3]
        [('full', 0), ('lora', 0), ('full', 1)]
    """
    for index in range(num_rates):
        for rule in rules:
            yield Run(task, rule, seed, index)


def further(
    task: str, rules: Sequence[str], seed: int, budget: Budget, records: Sequence[Record]
) -> Iterator[Run]:
    """A later seed: every rule at the rate that it chose on the first one."""
    best = chosen(records)
    for rule in rules:
        if (task, rule) in best:
            yield Run(task, rule, seed, budget.rates(rule).index(best[task, rule]))


def go(
    tasks: Sequence[str],
    rules: Sequence[str],
    seeds: Sequence[int],
    budget: Budget,
    num_rates: int,
    make_problem: Callable[[str, int], Problem],
    problem_settings: Callable[[str], dict[str, Any]],
    output: Path,
    masks: Path,
    say: Say,
) -> None:
    """Run what the results file lacks, seed by seed, task by task, and append each run to it.

    Args:
        tasks, rules: by name, in the order they are run in.
        seeds: of the split, the head, the order of the data and the chains; the first is the one
            that learning rates are chosen at.
        budget: of every run.
        num_rates: how many of its learning rates the search at the first seed tries.
        make_problem: (task, seed) -> the problem.
        problem_settings: task -> what else distinguishes its runs.
        output: the results file, of JSON lines.
        masks: folder for the masks of stage 1, so that a search selects once.
        say: prints a line.
    """
    code = revision(Path(__file__).parent)
    for seed in seeds:
        for task in tasks:
            settings = {"budget": asdict(budget)} | problem_settings(task)
            problem: Problem | None = None
            done = of_settings(read(output), task, settings, budget)
            planned = (
                search(task, rules, seed, num_rates)
                if seed == seeds[0]
                else further(task, rules, seed, budget, done)
            )
            for run in planned:
                record = start(run, settings, budget)
                if key(record) in {key(one) for one in done}:
                    continue
                problem = problem or make_problem(task, seed)
                try:
                    found = kept_mask(problem, run, record["settings_hash"], budget, masks)
                except fe.DivergedError as error:
                    record["error"] = str(error)  # a run that failed is one of the results
                else:
                    record |= found[1]
                    rate = record["rate"]
                    record |= train_and_measure(problem, run.rule, rate, found[0], budget, seed)
                append(output, record | {"settings": settings, "revision": code})
                say(f"{task} {run.rule} seed {seed} rate {record['rate']:g}: {outcome(record)}")


def start(run: Run, settings: dict[str, Any], budget: Budget) -> Record:
    """The part of a record that is known beforehand."""
    stage_one = selection_settings(run.rule, budget) if METHODS[run.rule] == "mask" else {}
    return {
        "task": run.task,
        "rule": run.rule,
        "seed": run.seed,
        "rate": budget.rates(run.rule)[run.rate_index],
        "rate_index": run.rate_index,
        "settings_hash": settings_hash(settings | {"stage_one": stage_one}),
    }


def of_settings(
    records: Sequence[Record], task: str, settings: dict[str, Any], budget: Budget
) -> list[Record]:
    """The runs of a task with just these settings."""
    return [
        record
        for record in records
        if record["task"] == task
        and record["rule"] in METHODS
        and record["settings_hash"]
        == start(Run(task, record["rule"], 0, 0), settings, budget)["settings_hash"]
    ]


def kept_mask(
    problem: Problem, run: Run, hashed: str, budget: Budget, folder: Path
) -> tuple[Tensor | None, Record]:
    """The mask of stage 1, made now or read from the folder; None where the rule has none."""
    if METHODS[run.rule] != "mask":
        return None, {"selection_seconds": 0.0}
    path = folder / f"{run.task}-{run.rule}-{run.seed}-{hashed}.pt"
    if not path.exists():
        started = time.perf_counter()
        mask, notes = choose(problem, run.rule, budget, run.seed)
        seconds = round(time.perf_counter() - started, 1)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({"selected": mask.nonzero()[:, 0], "seconds": seconds, "notes": notes}, path)
    kept = torch.load(path, weights_only=True)
    mask = torch.zeros_like(problem.network.anchor, dtype=torch.bool)
    mask[kept["selected"]] = True
    record = {
        "selected": int(mask.sum()),
        "selection_seconds": kept["seconds"],
        "selection_notes": kept["notes"],
    }
    return mask, record


def outcome(record: Record) -> str:
    """One run in words."""
    if "error" in record:
        return str(record["error"])
    test, validation = (
        ", ".join(f"{name} {value:.3f}" for name, value in record[part].items())
        for part in ("test", "validation")
    )
    seconds = f"{record['selection_seconds']:.0f} + {record['training_seconds']:.0f} s"
    return f"test {test}; validation {validation}; {seconds}"
