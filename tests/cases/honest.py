"""Whether one call at the defaults is right, or says that it is not, on a random program."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import numpy as np
import xarray as xr
from arviz_stats.base import array_stats
from numpy.typing import NDArray

import ppl_fe as fe
from cases.random_programs import Known, RandomProgram, known, program

MEAN_MARGIN, SD_MARGIN, ERRORS = 0.1, 0.05, 4.0
ROUNDING = 1e-6  # the first entry of a correlation's factor is one, but for this


class Outcome(NamedTuple):
    """What a call came to.

    wrong: what is off, in words. said: the first warning, or the checks that failed, or the
    refusal; "" where the run says that it is an answer.
    """

    shape: str
    wrong: str
    said: str
    num_gradients: int
    seconds: float

    @property
    def kind(self) -> str:
        if not self.said:
            return "silently wrong" if self.wrong else "right"
        return "said to be wrong" if self.wrong else "right and doubted"


def examine(number: int, seed: int = 0) -> Outcome:
    """Sample the program of a number by one call at the defaults, and hold it to what is known."""
    made = program(number)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            draws = fe.sample(made.model, seed=seed, progress_bar=False)
        except (ValueError, FloatingPointError) as refused:
            return Outcome(made.shape, "no draws", str(refused), 0, 0.0)
        failures = fe.diagnose(draws).failures
    said = str(caught[0].message) if caught else ", ".join(failures)
    attrs = draws.attrs
    wrong = what_is_wrong(draws, made, known(made))
    return Outcome(made.shape, wrong, said, int(attrs["num_gradients"]), float(attrs["seconds"]))


def what_is_wrong(draws: xr.DataTree, made: RandomProgram, exact: dict[str, Known]) -> str:
    """Name the values whose mean or sd is off by more than the margin and four errors."""
    found = []
    for name, truth in exact.items():
        values = np.asarray(draws.posterior[name].values, dtype=np.float64)
        values = made.seen(name, values.reshape(*values.shape[:2], -1))
        for k in np.flatnonzero(truth.sd > ROUNDING * np.abs(truth.mean)).tolist():
            x = (values[..., k] - truth.mean[k]) / truth.sd[k]
            errors = [_at(truth.mean_error, k), _at(truth.sd_error, k)]
            mean, sd = float(x.mean()), float(x.std())
            mean_error = math.hypot(_error(x, "mean"), errors[0])
            sd_error = math.hypot(_error(x, "sd"), errors[1])
            if not abs(mean) < MEAN_MARGIN + ERRORS * mean_error:
                found.append(f"mean of {name}[{k}] off by {mean:.2f} sd, error {mean_error:.3f}")
            if not abs(sd - 1) < SD_MARGIN + ERRORS * sd_error:
                found.append(f"sd of {name}[{k}] {sd:.3f} times what it is, error {sd_error:.3f}")
    return "; ".join(found)


def _at(values: NDArray[np.float64], k: int) -> float:
    return float(np.broadcast_to(values, k + 1)[k] if len(values) == 1 else values[k])


def _error(x: NDArray[np.float64], method: str) -> float:
    return float(array_stats.mcse(x, chain_axis=0, draw_axis=1, method=method))
