"""The five programs of the documentation: their length, their picture, and NumPyro's answer."""

from __future__ import annotations

import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

import ppl_fe as fe

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "benchmarks" / "results" / "five_programs.json"
NAMES = ["pumps", "stackloss", "trees", "petals", "horseshoe"]
LONG = {"trees", "horseshoe", "stackloss"}  # the longest of them
MOST_LINES = 15
ERRORS = 5.0  # standard errors that the worst of up to eighty scalars may stray
# What NUTS says of itself is held to the limits that a run here is held to.
R_HAT, ESS = 1.01, 400.0


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import the module that runs the page's programs."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module("pictures")


def test_each_takes_fifteen_lines_at_most_from_the_frame_on(pictures: Any) -> None:
    programs: dict[str, str] = pictures.programs()
    assert list(programs) == NAMES
    for name, code in programs.items():
        lines = [line for line in code[code.index("def ") :].splitlines() if line.strip()]
        assert len(lines) <= MOST_LINES, name
        assert "add_posterior_predictive" in code


def test_the_reference_has_converged() -> None:
    reference = json.loads(REFERENCE.read_text(encoding="utf-8"))
    assert list(reference) == NAMES
    for name, scalars in reference.items():
        assert max(row["r_hat"] for row in scalars.values()) < R_HAT, name
        assert min(row["ess_bulk"] for row in scalars.values()) > ESS, name


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore::UserWarning")  # of pictures
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in NAMES]
)
def test_the_answer_is_numpyro_s(name: str, pictures: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        draws = pictures.run(name, tmp_path)["draws"]
    picture = imread(tmp_path / f"{name}.png")
    assert len({tuple(pixel) for row in picture[::4] for pixel in row[::4].tolist()}) > 3
    warned = [str(one.message) for one in caught if issubclass(one.category, RuntimeWarning)]
    assert not warned
    reference = json.loads(REFERENCE.read_text(encoding="utf-8"))[name]
    table = fe.summary(draws, round_to="none")
    assert set(table.index) == set(reference)
    for scalar, theirs in reference.items():
        ours = table.loc[scalar]
        for what in ("mean", "sd"):
            error = np.hypot(ours[f"mcse_{what}"], theirs[f"mcse_{what}"])
            assert abs(ours[what] - theirs[what]) < ERRORS * error, (scalar, what)
