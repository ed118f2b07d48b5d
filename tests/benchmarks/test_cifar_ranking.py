"""The two rankings of the CIFAR-FS networks are compared by what they cost and by their orders."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from cases.scripts import run_script

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "cifar_ranking.py"

pytestmark = pytest.mark.usefixtures("benchmarks_importable")


def table(wbic: list[float], passes: float, seconds: float) -> pd.DataFrame:
    return pd.DataFrame({"wbic": wbic, "passes": passes, "seconds": seconds})


def test_each_aim_is_met_or_missed_by_itself() -> None:
    from cifar_ranking import verdicts

    long = table([1.0, 2.0, 3.0, 4.0], passes=2500.0, seconds=40.0)
    short = table([10.0, 20.0, 40.0, 30.0], passes=201.0, seconds=4.0)
    passes, epochs, spearman = verdicts(long, short, epoch=0.05)
    assert passes.endswith("aim 200: missed")
    assert "the long way 2500 here" in passes
    assert epochs.startswith("epochs        80, the long way 800 here")
    assert epochs.endswith("aim 92: met")
    assert spearman.startswith("Spearman   0.800 of the two orders of 4 networks")
    assert spearman.endswith("missed")


def test_absent_data_skips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script(SCRIPT, "--data", str(tmp_path)) == 0
    assert capsys.readouterr().out.startswith("skipped: no CIFAR-FS under")


@pytest.mark.slow
def test_smoke(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "report.txt"
    assert run_script(SCRIPT, "--smoke", "--work", str(tmp_path), "--output", str(output)) == 0
    report = output.read_text()
    assert report.count(" seed=") == 4
    assert report.count("aim") == 3
    assert report in capsys.readouterr().out
