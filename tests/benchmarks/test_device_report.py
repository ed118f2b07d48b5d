"""What `benchmarks/device.py` does without a device, and with parts that fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from cases.scripts import run_script

pytestmark = pytest.mark.usefixtures("benchmarks_importable")
SCRIPT = Path(__file__).parent.parent.parent / "benchmarks/device.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a device")
def test_without_a_device_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script(SCRIPT, "--output", str(tmp_path / "device.txt")) == 0
    assert "no CUDA device" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_part_that_fails_or_hangs_is_told_and_the_others_go_on() -> None:
    from device import commands, report

    def script(code: str) -> list[str]:
        return [sys.executable, "-c", code]

    parts = {
        "bad": (script("print('so far'); raise ValueError('no memory')"), 30.0),
        "slow": (script("import time; time.sleep(30)"), 0.2),
        "good": (script("print('3 ms')"), 30.0),
    }
    told = report(parts, "a device")
    for text in ("exit status 1\nso far", "no memory", "not done after 0 s", "3 ms"):
        assert text in told
    assert sum(limit for _, limit in commands(Path()).values()) < 600
