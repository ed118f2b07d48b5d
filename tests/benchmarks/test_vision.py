"""The vision benchmark runs from end to end on random images, and its parts do what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases.scripts import run_script

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("benchmarks_importable")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "vision.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_rules_run_to_their_lines_once(tmp_path: Path) -> None:
    output, work = tmp_path / "runs.jsonl", tmp_path / "work"
    rules = ["full", "lora", "random", "bayestune"]
    common = ["--quick", "--seeds", "1", "--output", str(output), "--work", str(work), "--rules"]
    done = run(*common, *rules)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(records) == 3 * len(rules)
    assert not [record["error"] for record in records if "error" in record]
    assert [record["rule"] for record in records] == rules * 3  # rate by rate
    # Patches of 4 × 4 × 3 to 4, then 2 × 2 patches to 8 and to 8.
    size = (48 * 4 + 4) + (16 * 8 + 8) + (32 * 8 + 8)
    trained = {record["rule"]: record["trained"] for record in records}
    assert trained["full"] == size
    assert trained["bayestune"] == trained["random"] == round(0.05 * size)
    assert done.stdout.count("pretrained") == 1
    # Given again, it reads the pretrained network and runs nothing.
    again = run(*common, *rules)
    assert "pretrained" not in again.stdout
    assert len(output.read_text().splitlines()) == len(records)


def test_absent_data_skips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script(ROOT / "benchmarks" / "vision.py", "--data", str(tmp_path)) == 0
    assert capsys.readouterr().out.startswith("skipped: no CIFAR-FS under")


def test_problem_keeps_the_body_and_renews_head_and_images() -> None:
    import vision
    from cifar.data import random_images

    images = random_images(vision.QUICK.split, seed=0)
    module = vision.QUICK.build(images.num_classes)
    problems = [vision.make_problem(vision.QUICK, images, module, "cifar_fs", s) for s in (0, 1)]
    body, heads = module.state_dict(), []
    for problem in problems:
        network = problem.network
        for name, tensor in network.unflatten(network.anchor).items():
            if not name.startswith("head."):
                assert torch.equal(tensor, body[name])
        heads.append(network.unflatten(network.anchor)["head.weight"])
        assert heads[-1].shape == (vision.NUM_CLASSES, 8)
        parts = (problem.training, problem.validation, problem.test)
        assert [len(y) for _, y in parts] == [20 * 7, 20 * 1, 20 * 4]
        every = torch.cat([x for x, _ in parts]).flatten(1)
        assert len({tuple(row) for row in every.tolist()}) == 20 * 12  # no image twice
    assert not torch.equal(*heads)
    assert not torch.equal(problems[0].training[0], problems[1].training[0])
    assert len(module.get_parameter("head.bias")) == images.num_classes  # the caller's stays
