"""Healthy runs fail no check by chance, at the rate that is promised."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from cases.synthetic_runs import synthetic

import ppl_fe as fe

# (chains, draws, correlation): an ESS of 500 a chain at least.
LENGTHS = [(4, 1000, 0.0), (4, 2000, 0.5), (8, 1000, 0.2)]


def failures(runs: int, num_chains: int, num_draws: int, correlation: float) -> Counter[str]:
    generator = np.random.default_rng(17)
    found: Counter[str] = Counter()
    for _ in range(runs):
        tree = synthetic(
            generator, num_chains=num_chains, num_draws=num_draws, correlation=correlation
        )
        found.update(fe.diagnose(tree).failures)
    return found


@pytest.mark.parametrize("length", LENGTHS)
def test_none_in_a_few_runs(length: tuple[int, int, float]) -> None:
    assert not failures(8, *length)


@pytest.mark.slow
@pytest.mark.parametrize("length", LENGTHS)
def test_none_in_hundreds(length: tuple[int, int, float]) -> None:
    assert not failures(300, *length)


@pytest.mark.slow
def test_short_runs_fail_by_their_length_alone() -> None:
    # An ESS of 50 a chain: what is random beside R-hat and ESS keeps to its law all the same.
    found = failures(300, 4, 1000, 0.9)
    assert found.keys() <= {"r_hat", "ess_bulk", "ess_tail", "run_length"}
    assert found["ess_bulk"] > 290
