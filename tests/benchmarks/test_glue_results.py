"""The results file of the GLUE benchmark: what is chosen, shown, kept; and the equal budgets."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
from pathlib import Path
from typing import Any

import pytest

Record = dict[str, Any]

pytestmark = pytest.mark.usefixtures("benchmarks_importable")


def record(rule: str, seed: int, index: int, validation: float, test: float) -> Record:
    known: Record = {"task": "t", "rule": rule, "seed": seed, "rate_index": index}
    known |= {"rate": 10.0**-index, "test": {"accuracy": test}, "selection_seconds": 0.0}
    known |= {"validation": {"accuracy": validation, "loss": 1.0}, "training_seconds": 1.0}
    return known | {"trained": 5}


def test_rates_are_chosen_on_validation_alone() -> None:
    from glue.results import chosen

    better_loss = {"validation": {"accuracy": 0.5, "loss": 0.9}}
    runs = [
        record("a", 0, 0, 0.5, 0.9),
        record("a", 0, 1, 0.5, 0.1) | better_loss,  # a tie: the loss decides, not the test
        record("b", 0, 0, 0.4, 0.2),
        record("b", 0, 1, 0.6, 0.1),
        record("b", 1, 0, 0.9, 0.9),  # another seed has no say
    ]
    assert chosen(runs) == {("t", "a"): 0.1, ("t", "b"): 0.1}
    # A third rate that only one rule has tried does not count, until all have, failed or not.
    third = record("a", 0, 2, 1.0, 1.0)
    assert chosen([*runs, third])["t", "a"] == 0.1
    failed = {k: v for k, v in record("b", 0, 2, 0, 0).items() if k != "validation"}
    found = chosen([*runs, third, failed | {"error": "not finite"}])
    assert found == {("t", "a"): 0.01, ("t", "b"): 0.1}


def test_table_gives_mean_and_standard_error_over_seeds() -> None:
    from glue.results import table

    runs = [record("a", seed, 0, 0.5, value) for seed, value in enumerate((0.50, 0.60, 0.70))]
    runs += [record("b", 0, 0, 0.5, 0.25), record("b", 1, 1, 0.5, 0.99)]  # a rate not chosen
    head, *rows = table(runs)
    assert "t accuracy" in head
    # sd 0.1, over √3
    assert rows[0].split()[:5] == ["a", "60.0", "±", "5.8", "(3)"]
    assert rows[1].split()[:3] == ["b", "25.0", "(1)"]


def test_results_survive_a_stop_and_refuse_damage(tmp_path: Path) -> None:
    from glue.results import append, read

    path = tmp_path / "deep" / "runs.jsonl"
    assert read(path) == []
    append(path, {"a": 1})
    append(path, {"a": 2})
    with path.open("a") as file:
        file.write('{"a": ')
    assert read(path) == [{"a": 1}, {"a": 2}]
    append(path, {"a": 3})
    assert read(path) == [{"a": 1}, {"a": 2}, {"a": 3}]
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read(path)


def test_other_settings_are_other_runs() -> None:
    from glue.rules import Budget
    from glue.runs import Run, start

    budget = Budget()
    hashes = {
        start(Run("cb", rule, 0, 0), {"budget": dataclasses.asdict(b)}, b)["settings_hash"]
        for rule in ("random", "bayestune", "movement")
        for b in (budget, dataclasses.replace(budget, selection_steps=7))
    }
    assert len(hashes) == 6


def test_lora_comes_nearest_to_the_budget() -> None:
    from glue.rules import adapter_size, lora_rank
    from glue.transformer import TextClassifier

    import ppl_fe as fe

    network = fe.FlatNetwork(TextClassifier(3, 0))
    # Six layers of four 384 × 384 and two 384 × 1536 matrices.
    assert adapter_size(network) == 6 * (4 * 768 + 2 * 1920)
    size = network.num_parameters - 3 * 385
    budget, rank = 0.005 * size, lora_rank(network, 0.005)
    assert rank == min(range(1, 10), key=lambda r: abs(r * adapter_size(network) - budget)) == 3


@pytest.mark.parametrize("name", ["metrics", "tasks", "transformer", "rules", "results", "runs"])
def test_examples_in_docstrings_hold(name: str) -> None:
    found = doctest.testmod(importlib.import_module(f"glue.{name}"))
    assert found.attempted > 0
    assert found.failed == 0
