"""The benchmark of the data weight: a line a run and share, none twice, and a table of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cases.scripts import run_script

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("benchmarks_importable")


@pytest.mark.thorough
def test_a_line_a_share_and_none_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results.jsonl"
    call = ["--quick", "--seeds", "1", "--output", str(results), "--ways", "auto"]
    script = ROOT / "benchmarks" / "data_weight.py"
    assert run_script(script, *call) == 0
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [line["share"] for line in lines] == [0.01, 0.02, 0.04, 0.08]
    weights = [line["times_n"] for line in lines]
    assert 1 < weights[0] < weights[1] < weights[2] < weights[3]  # more room, weaker pulls
    assert run_script(script, *call) == 0
    assert len(results.read_text().splitlines()) == 4
    assert capsys.readouterr().out.splitlines()[-1].split()[0] == "bayestune"


def test_the_rate_is_chosen_by_images_held_out_for_it() -> None:
    import data_weight

    record = {
        "way": "mine", "seed": 1, "share": 0.02, "times_n": 2.0, "cpu_seconds": 1.0, "notes": 0,
        "choose": [0.1, 0.5, 0.9, 0.9, 0.2, 0.0, 0.0], "test": [0.99, 0.5, 0.7, 0.8, 0.9, 0.9, 0.9],
    }  # fmt: skip
    assert "70.0" in data_weight.table([record])
