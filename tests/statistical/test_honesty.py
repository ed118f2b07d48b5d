"""No wrong answer without a word: random programs, each by one call at the defaults.

A mean off by more than a tenth of an sd, or an sd by more than 5 %, both beyond four standard
errors of draws and reference, must come with a warning or a failed check.
"""

from __future__ import annotations

import numpy as np
import pytest
from cases.honest import examine
from cases.random_programs import SHAPES, known, program

NUM_PROGRAMS = 200
# Quick ones: scales, correlations, a hierarchy, modes apart. `benchmarks/honesty.py` runs all.
QUICK = (0, 1, 3, 12, 20, 43)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(number, marks=pytest.mark.thorough if number in QUICK else pytest.mark.slow)
        for number in range(NUM_PROGRAMS)
    ],
)
def test_a_wrong_answer_is_never_silent(number: int) -> None:
    found = examine(number)
    assert found.kind != "silently wrong", found


def test_the_references_agree_with_closed_forms() -> None:
    """By weights as without: the program that has a closed form, asked for draws of its prior."""
    made = program([shape.__name__ for shape in SHAPES].index("rate"))
    exact, drawn = known(made)["rate"], known(made._replace(exact={}))["rate"]
    assert abs(drawn.mean - exact.mean) < 4.5 * drawn.mean_error * exact.sd
    assert abs(drawn.sd / exact.sd - 1) < 4.5 * drawn.sd_error


def test_equal_numbers_make_equal_programs() -> None:
    first, second = (known(program(0))["x0"] for _ in range(2))
    np.testing.assert_array_equal(first.mean, second.mean)
