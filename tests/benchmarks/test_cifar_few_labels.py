"""The choice among CIFAR-FS networks by few labels: its tasks, and a line a part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cases.scripts import run_script

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("benchmarks_importable")


def test_a_task_shows_five_images_of_each_class_and_keeps_them_from_the_episodes() -> None:
    import cifar_few_labels
    from cifar.data import random_images
    from cifar.settings import SMALL, smoke

    images = random_images(smoke(SMALL).split, seed=0)
    (shown, labels), (others, other_labels) = cifar_few_labels.task(images, 3)
    assert labels.bincount().tolist() == [5] * 5
    assert sorted(set(other_labels.tolist())) == list(range(5))
    both = torch.cat([shown, others]).flatten(1)
    assert len(set(map(tuple, both.tolist()))) == len(both)
    again, _ = cifar_few_labels.task(images, 3)
    other, _ = cifar_few_labels.task(images, 4)
    assert torch.equal(again[0], shown)
    assert not torch.equal(other[0], shown)


@pytest.mark.slow
def test_a_line_a_part_and_none_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results.jsonl"
    call = ["--smoke", "--tasks", "0", "1", "--output", str(results), "--work", str(tmp_path)]
    for _ in range(2):
        assert run_script(ROOT / "benchmarks" / "cifar_few_labels.py", *call) == 0
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(lines) == 1 + 2 * 4
    said = capsys.readouterr().out
    for name in ("pactran", "free_energy", "consensus", "wbic", "neural_collapse"):
        assert name in said
