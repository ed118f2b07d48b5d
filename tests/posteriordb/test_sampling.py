"""The sampler with nothing but automatic settings against posteriordb's reference draws.

Every mean within 0.1 reference standard deviations and every standard deviation within 10 %. The
condition numbers go up to 7e11 (kilpisjarvi) and 2e7 (earnings), which the dense metric takes away.
Runs are long enough for a fault to show and for luck not to decide: the error bars, the
reference's included, are held well within the margins.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import xarray as xr
from arviz_stats.base import array_stats

import ppl_fe as fe

from .programs import POSTERIORS
from .reference import Reference, load, needs_posteriordb

pytestmark = needs_posteriordb
MEAN_MARGIN, SD_MARGIN = 0.1, 0.1
LARGEST_ERROR = 0.03  # standard errors of both, in the margins' units; a margin is over three


class Comparison(NamedTuple):
    """The worst over parameters: |mean − m|/s and |sd/s − 1|, and their standard errors.

    m and s are the reference's. Squared deviations give the error of the standard deviation,
    se(sd)/s = se(mean of squares) / 2s².
    """

    mean: float
    sd: float
    mean_error: float
    sd_error: float


def compare(draws: xr.DataTree, reference: Reference) -> Comparison:
    """Draws (C, S) of every parameter of the reference against the reference's."""
    worst = np.zeros(4)
    for name, theirs in reference.draws.items():
        ours = draws.posterior[name].values
        ours = ours.reshape(*ours.shape[:2], -1)
        for k, column in enumerate(np.moveaxis(theirs.reshape(*theirs.shape[:2], -1), 2, 0)):
            m, s = column.mean(), column.std()
            pair = [((values - m) / s) for values in (ours[..., k], column)]
            shift, scale = pair[0].mean(), pair[0].std()
            errors = math.hypot(*(error(values) for values in pair))
            of_squares = math.hypot(*(error((values - values.mean()) ** 2) / 2 for values in pair))
            worst = np.maximum(worst, [abs(shift), abs(scale - 1), errors, of_squares])
    return Comparison(*worst.tolist())


def error(values: Any) -> float:
    """Standard error of the mean of (C, S) draws, from their effective sample size."""
    return float(array_stats.mcse(values, chain_axis=0, draw_axis=1, method="mean"))


def check(name: str, kernel: dict[str, Any], length: dict[str, Any], **batch: Any) -> None:
    program, arguments = POSTERIORS[name]
    reference = load(name)
    draws = fe.sample(
        fe.BAOAB(program, step_size="auto", metric="dense", **kernel),
        *arguments(reference.data),
        seed=1,
        progress_bar=False,
        **length,
        **batch,
    )
    assert draws.posterior.sizes["chain"] == length["num_chains"]
    found = compare(draws, reference)
    assert max(found.mean_error, found.sd_error) < LARGEST_ERROR
    assert found.mean < MEAN_MARGIN
    assert found.sd < SD_MARGIN


SMALL = [
    "eight_schools-eight_schools_noncentered",
    "kilpisjarvi_mod-kilpisjarvi",
    "mesquite-logmesquite_logvash",
]
BATCHES = {
    "dogs-dogs": 100,
    "earnings-logearn_interaction": 100,
    "kidiq-kidscore_momiq": 100,
    "low_dim_gauss_mix-low_dim_gauss_mix": 100,
    "nes1976-nes": 100,
    "sblrc-blr": 50,
    "sblri-blr": 50,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_small_sets(name: str) -> None:
    # The funnel of the eight schools is four times as wide as the curvature at its mode says.
    length = {"num_chains": 32, "num_samples": 600, "warmup_steps": 500, "thinning": 5}
    check(name, {}, length)


@pytest.mark.slow
@pytest.mark.parametrize("name", BATCHES)
def test_large_sets_at_once(name: str) -> None:
    length = {"num_chains": 32, "num_samples": 400, "warmup_steps": 500, "thinning": 4}
    check(name, {}, length)


@pytest.mark.slow
@pytest.mark.parametrize("name", BATCHES)
def test_large_sets_in_minibatches(name: str) -> None:
    length = {"num_chains": 32, "num_samples": 400, "warmup_steps": 500, "thinning": 5}
    check(name, {"gradient": "control_variate"}, length, subsample_size=BATCHES[name])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "batch"), [("dogs-dogs", 256), ("sblri-blr", 50)])
def test_plain_minibatches(name: str, batch: int) -> None:
    """Without control variates the noise asks for steps twenty times as small in time."""
    length = {"num_chains": 64, "num_samples": 300, "warmup_steps": 1000, "thinning": 25}
    check(name, {}, length, subsample_size=batch)


@pytest.mark.thorough
@pytest.mark.parametrize("name", POSTERIORS)
def test_one_call_at_the_defaults_is_an_answer(name: str) -> None:
    """Every mean within 0.1 reference sd, every sd within 5 %, and the run says that it is done."""
    program, arguments = POSTERIORS[name]
    reference = load(name)
    draws = fe.sample(program, *arguments(reference.data), progress_bar=False)
    assert draws.attrs["target_missed"] == ""
    found = compare(draws, reference)
    assert found.mean < MEAN_MARGIN
    assert found.sd < 0.05
    assert fe.diagnose(draws).passed


SEEDED = ("kidiq-kidscore_momiq", SMALL[0], "sblri-blr")
NUM_SEEDS, LEAST_RIGHT = 20, 19


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEDED)
def test_of_twenty_seeds_nineteen_are_right(name: str) -> None:
    """At an ESS of 400 chance alone leaves the margins now and then."""
    program, arguments = POSTERIORS[name]
    reference = load(name)
    data = arguments(reference.data)
    off = {}
    for seed in range(NUM_SEEDS):
        draws = fe.sample(program, *data, seed=seed, progress_bar=False)
        found, failures = compare(draws, reference), fe.diagnose(draws).failures
        if found.mean >= MEAN_MARGIN or found.sd >= 0.05 or failures:
            off[seed] = (round(found.mean, 3), round(found.sd, 3), failures)
    assert NUM_SEEDS - len(off) >= LEAST_RIGHT, off


def test_every_posterior_is_sampled() -> None:
    assert sorted([*SMALL, *BATCHES]) == sorted(POSTERIORS)


def test_the_comparison_sees_a_shift_and_a_scale() -> None:
    reference = load("kidiq-kidscore_momiq")
    wrong = {name: values.copy() for name, values in reference.draws.items()}
    beta = wrong["beta"][..., 1]
    beta += 0.2 * beta.std()
    sigma = wrong["sigma"]
    sigma += 0.15 * (sigma - sigma.mean())
    posterior = xr.Dataset(
        {
            name: (("chain", "draw", f"{name}_dim_0")[: values.ndim], values)
            for name, values in wrong.items()
        }
    )
    found = compare(xr.DataTree.from_dict({"posterior": posterior}), reference)
    np.testing.assert_allclose([found.mean, found.sd], [0.2, 0.15], rtol=1e-9)
    # Ten thousand draws on either side, nearly independent.
    assert found.mean_error < 0.02
    assert 0.009 < found.sd_error < 0.02
