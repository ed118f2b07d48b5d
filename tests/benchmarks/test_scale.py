"""The arithmetic of `benchmarks/scale.py`, what it counts, and that its quick form runs."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.usefixtures("benchmarks_importable")


@pytest.mark.parametrize("power", [0.5, 1.0, 1.3])
def test_slope_is_the_power_of_a_power_law(power: float) -> None:
    from scale import slope

    sizes = [10, 40, 1000]
    assert slope(sizes, [7 * size**power for size in sizes]) == pytest.approx(power)


def test_verdict_follows_the_aim() -> None:
    from scale import verdict

    sizes = [1e6, 1e7, 1e8]
    for power, word in ((0.85, "missed"), (0.95, "met"), (1.05, "met"), (1.15, "missed")):
        (line,) = verdict("parameters", sizes, [size**power for size in sizes])
        assert line.endswith(word)
    assert verdict("parameters", [1e6], [3.0]) == []


def test_units() -> None:
    from scale_costs import Cost

    # 5 ns a coordinate, 2000 x 3 coordinates: 30 µs. Beside the noise 3 ns are left; copying
    # moves 8 bytes in 0.5 ns, hence 48 in 3.
    cost = Cost(2000, 3, step=5.0, noise=2.0, copy=0.5, stepping=1.0, run=None)
    assert cost.microseconds == pytest.approx(30)
    assert cost.copied == pytest.approx(48)


@pytest.mark.parametrize(("sampler", "width"), [("sgld", 1), ("baoab", 2)])
def test_bytes_are_those_of_the_equations(sampler: str, width: int) -> None:
    from scale_costs import bytes_moved

    # In: the state, noise, anchor, and the temperature's centre and direction. Out: the state.
    expected = {
        "read": 4 * (width + 4),
        "written": 4 * width,
        "noise": 4,
        "fewest": 4 * (2 * width + 1),
    }
    for num_parameters in (1000, 5000):
        assert bytes_moved(sampler, num_parameters) == expected


def test_times_are_the_processors() -> None:
    from scale_costs import processor_seconds

    def work() -> None:
        end = time.process_time() + 0.01
        while time.process_time() < end:
            pass

    assert processor_seconds(lambda: time.sleep(0.1), 2) < 0.03
    assert 0.01 <= processor_seconds(work, 5) < 0.03


def test_what_does_not_fit_is_left_out_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import scale

    monkeypatch.setattr(scale, "available", lambda: scale.BYTES_NEEDED * 1e6 - 1)
    costs, lines = scale.measured("1,000,000 parameters", "sgld", [(10**6, 1)], 1, False)
    assert costs == []
    assert "1,000,000 parameters: left out: needs about" in lines[0]
    # What fits, just, is begun: here it fails for want of such a sampler, and that is told.
    monkeypatch.setattr(scale, "available", lambda: scale.BYTES_NEEDED * 1e6)
    costs, lines = scale.measured("1,000,000 parameters", "none", [(10**6, 1)], 1, False)
    assert costs == []
    assert "KeyError: 'none'" in lines[0]


@pytest.mark.slow
def test_quick_form(tmp_path: Path) -> None:
    output = tmp_path / "table.txt"
    command = [sys.executable, str(BENCHMARKS / "scale.py"), "--quick", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = output.read_text()
    assert text == done.stdout
    assert "left out" not in text
    blocks = {block.splitlines()[0]: block.splitlines()[2:] for block in text.split("\n\n")[1:]}
    for title, sizes in (
        ("sgld, one chain", ("10,000", "100,000")),
        ("sgld, 10,000 parameters a chain", ("1", "4")),
    ):
        rows = [line.split() for line in blocks[title][: len(sizes)]]
        assert tuple(row[0] for row in rows) == sizes
        for row in rows:
            step, noise, rest, copy, _, stepping = (float(value) for value in row[2:8])
            assert 0 < copy < noise < step
            assert rest == pytest.approx(step - noise, abs=0.011)
            assert 0.1 < stepping < 2  # GB: the interpreter and torch
    largest = blocks["sgld, one chain"][1].split()
    assert float(largest[8]) >= float(largest[7])  # the run's peak holds that of its steps
    assert any("slope in chains" in line for line in blocks["sgld, 10,000 parameters a chain"])
