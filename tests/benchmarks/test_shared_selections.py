"""What two selections share: the share of known sets, and the whole path in small."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases.scripts import run_script

pytestmark = pytest.mark.usefixtures("benchmarks_importable")


def test_shares_of_known_sets() -> None:
    from shared_selections import shared, table

    same = torch.arange(6.0).expand(4, -1)
    assert shared(same, 1, 2) == shared(same, 2, 2) == 1
    # Of three pairs one has all in common, and two none.
    apart = torch.tensor([[9.0, 8, 0, 0], [8.0, 9, 0, 0], [0.0, 0, 9, 8]])
    assert shared(apart, 1, 2) == pytest.approx(1 / 3)
    assert table({"drawn": same}, 1 / 3).splitlines()[-1].split() == ["drawn", "100", "100"]


@pytest.mark.thorough
def test_chains_are_run_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "shared_selections.py"
    call = ["--quick", "--chains", "2", "--scores", str(tmp_path)]
    assert run_script(script, *call) == 0
    first = capsys.readouterr().out.splitlines()
    assert run_script(script, *call) == 0
    assert first[:-5][-1].endswith("expected, chain 1")
    assert capsys.readouterr().out.splitlines() == first[-5:]
