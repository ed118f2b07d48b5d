"""The README's Python runs, and prints what the README shows, up to the last digits."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.compile(r"```python\n(.*?)```\s*```text\n(.*?)```", re.DOTALL)
EXAMPLES, LONGEST = 3, 150  # one example a question, and a length that is read to its end
NUMBER = re.compile(r"-?\d+\.?\d*(?:e[+-]?\d+)?")


@pytest.mark.thorough  # a minute, at the lengths that a reader would take
def test_examples_print_what_they_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = BLOCKS.findall(README.read_text(encoding="utf-8"))
    assert len(examples) == EXAMPLES
    names: dict[str, object] = {}
    for code, shown in examples:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        assert words(printed.getvalue()) == words(shown)
        # Rounding differs from machine to machine, and chains carry it on.
        assert numbers(printed.getvalue()) == pytest.approx(numbers(shown), rel=0.35, abs=0.1)


def test_it_is_short_and_every_example_is_run() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST
    assert text.count("```python") == len(BLOCKS.findall(text))


def words(text: str) -> list[str]:
    return NUMBER.sub("#", text).split()


def numbers(text: str) -> list[float]:
    return [float(number) for number in NUMBER.findall(text)]
