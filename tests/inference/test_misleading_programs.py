"""Programs that Pyro takes and chains cannot: refused by name before anything is drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import mcse_of_mean, z_score
from pyro.contrib.autoname import scope
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

import ppl_fe as fe

Y = torch.linspace(-1, 1, 12)


def angle() -> None:
    pyro.sample("angle", dist.VonMises(0.0, 1.0))


def angles() -> None:
    pyro.sample("angle", dist.VonMises(torch.zeros(3), 1.0).to_event(1))


def two_angles() -> None:
    law = dist.SineBivariateVonMises(0.0, 0.0, 1.0, 1.0, correlation=0.1)
    pyro.sample("angle", law)


def mixed_angles() -> None:
    parts = dist.VonMises(torch.tensor([0.0, 2.0]), 4.0)
    pyro.sample("angle", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts))


def scoped() -> None:
    with scope(prefix="regression"):
        pyro.sample("mean", dist.Normal(0.0, 1.0))


def scoped_value() -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.deterministic("two/means", 2 * mean)


def loop() -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    for i in pyro.plate("rows", len(Y), subsample_size=4):
        pyro.sample(f"y_{i}", dist.Normal(mean, 1.0), obs=Y[i])


class WithBatchNorm(PyroModule[nn.Module]):
    def __init__(self) -> None:
        super().__init__()
        self.layer = PyroModule[nn.Linear](2, 3)
        self.layer.weight = PyroSample(dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))
        self.norm, self.head = nn.BatchNorm1d(3), nn.Linear(3, 1)

    def forward(self) -> None:
        mean = self.head(self.norm(self.layer(Y.reshape(6, 2))))[:, 0]
        with pyro.plate("rows", 6):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=Y[:6])


PROGRAMS: dict[str, tuple[Callable[[], Callable[[], None]], str]] = {
    "an angle": (lambda: angle, r"'angle' \(VonMises\) is an angle.*atan2"),
    "angles as one event": (lambda: angles, r"'angle' \(VonMises\) is an angle"),
    "a pair of angles": (lambda: two_angles, r"'angle' \(SineBivariateVonMises\) is an angle"),
    "a mixture of angles": (lambda: mixed_angles, r"'angle' \(VonMises\) is an angle"),
    "a scope": (lambda: scoped, r"'regression/mean' holds a slash.*'regression.mean'"),
    "a value with a slash": (lambda: scoped_value, "'two/means' holds a slash"),
    "a loop over rows": (lambda: loop, r"loop over the plate 'rows'.*with pyro\.plate\('rows'"),
    "statistics in training": (WithBatchNorm, r"module\.eval\(\)"),
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_it_is_refused_by_name_and_with_what_to_write(kind: str) -> None:
    make, message = PROGRAMS[kind]
    with pytest.raises(ValueError, match=message):
        fe.sample(fe.BAOAB(make()), num_samples=10, warmup_steps=10, progress_bar=False)


def test_what_they_stand_for_is_still_taken() -> None:
    def whole_loop() -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        for i in pyro.plate("rows", 3):
            pyro.sample(f"y_{i}", dist.Normal(mean, 1.0), obs=Y[i])

    module = WithBatchNorm().eval()
    options: dict[str, Any] = {"num_samples": 5, "warmup_steps": 5, "num_chains": 2}
    for program in (whole_loop, module):
        kernel = fe.BAOAB(program, step_size=1e-3)
        draws = fe.sample(kernel, compile="eager", progress_bar=False, **options)
        assert all(
            bool(torch.as_tensor(v.values).isfinite().all()) for v in draws.posterior.values()
        )


def test_a_direction_has_an_angle_that_mixes() -> None:
    def direction() -> None:
        x: Tensor = pyro.sample("x", dist.Normal(0.0, 1.0))
        y: Tensor = pyro.sample("y", dist.Normal(0.0, 1.0))
        turned = pyro.deterministic("angle", torch.atan2(y, x))
        pyro.factor("towards zero", 2.0 * turned.cos())

    kernel = fe.BAOAB(direction, step_size=0.1, friction=2.0)
    draws = fe.sample(
        kernel, num_samples=400, thinning=3, warmup_steps=100, compile="traced", progress_bar=False
    )
    found = draws.posterior["angle"].values
    assert abs(found).max() <= torch.pi + 1e-6
    # E[cos angle] of a von Mises density of concentration κ is I₁(κ)/I₀(κ).
    wanted = torch.special.i1(torch.tensor(2.0)) / torch.special.i0(torch.tensor(2.0))
    cosine = np.cos(found.astype(np.float64))
    error = mcse_of_mean(cosine)
    assert abs(z_score(float(cosine.mean()), float(wanted), error)) < 4
    assert error < 0.04


def rows_as_an_event(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0).expand([len(y)]).to_event(1), obs=y)


def rows_in_two_plates(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)), pyro.plate("again", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.mark.parametrize("program", [rows_as_an_event, rows_in_two_plates])
def test_rows_that_their_plate_repeats_are_refused(program: Callable[[Tensor], None]) -> None:
    with pytest.raises(ValueError, match=r"'y' has values of shape .* count all of them 12 times"):
        fe.sample(program, Y, progress_bar=False)


def test_a_plate_of_several_fits_of_the_same_data_is_taken() -> None:
    def fits(y: Tensor) -> None:
        with pyro.plate("fit", len(y), dim=-2):
            mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(y), dim=-1):
                pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    draws = fe.sample(fits, Y, num_samples=20, warmup_steps=5, progress_bar=False)
    assert draws.posterior["mean"].sizes["fit"] == len(Y)
