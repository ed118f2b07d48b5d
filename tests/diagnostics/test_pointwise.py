"""Log-densities of every datum against distributions evaluated by hand; ArviZ's loo on them."""

from __future__ import annotations

import arviz_stats as azs
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro import poutine
from torch import Tensor

import ppl_fe as fe
from ppl_fe.diagnostics import stein_check

Y = torch.linspace(-1.0, 2.0, 11)
GROUPS = torch.arange(12).reshape(4, 3) / 5.0


def regression(y: Tensor, size: int | None = None) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    with pyro.plate("data", len(y), subsample_size=size) as rows, poutine.scale(scale=0.5):
        pyro.sample("y", dist.Normal(mean, scale), obs=y[rows])


def crossed(y: Tensor, rows: int | None = None, columns: int | None = None) -> None:
    """Two observed sites, in plates that both subsample, one datum of the second masked."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    outer = pyro.plate("rows", y.shape[0], subsample_size=rows, dim=-2)
    inner = pyro.plate("columns", y.shape[1], subsample_size=columns, dim=-1)
    with outer as r, inner as c:
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y[r][:, c])
    with inner as c, poutine.mask(mask=c != 1):
        pyro.sample("z", dist.Normal(mean, 2.0), obs=y[0][c])


def run(program: object, *args: object) -> xr.DataTree:
    kernel = fe.BAOAB(program, step_size=1e-3, friction=1.0)
    settings = {"warmup_steps": 5, "compile": "eager", "progress_bar": False}
    return fe.sample(kernel, *args, num_samples=7, num_chains=2, **settings)  # type: ignore[arg-type]


def normal(draws: xr.DataTree, y: Tensor, scale: float | str) -> np.ndarray:
    """log N(y_i | mean_s, scale_s), (C, S, *y)."""

    def site(name: str) -> Tensor:
        values = torch.tensor(draws.posterior[name].values)
        return values.reshape(*values.shape, *([1] * y.dim()))

    sd = site(scale) if isinstance(scale, str) else scale
    return np.asarray(dist.Normal(site("mean"), sd).log_prob(y))


@pytest.mark.parametrize("size", [None, 4, 11])
def test_every_datum_has_its_log_density_at_every_draw(size: int | None) -> None:
    draws = run(regression, Y, size)
    found = fe.add_log_likelihood(draws, regression, Y, size)
    terms = found.log_likelihood["y"]
    assert terms.dims == ("chain", "draw", "data")
    wanted = 0.5 * normal(draws, Y, "scale")  # with the weight that the program gives the data
    np.testing.assert_allclose(terms.values, wanted, rtol=2e-5, atol=2e-5)
    assert "log_likelihood" not in draws.children
    xr.testing.assert_identical(found.posterior.to_dataset(), draws.posterior.to_dataset())


@pytest.mark.parametrize(("rows", "columns"), [(None, None), (3, 2), (1, None)])
def test_crossed_plates_are_gone_through_whole(rows: int | None, columns: int | None) -> None:
    draws = run(crossed, GROUPS, rows, columns)
    found = fe.add_log_likelihood(draws, crossed, GROUPS, rows, columns).log_likelihood
    np.testing.assert_allclose(found["y"].values, normal(draws, GROUPS, 1.0), rtol=1e-5)
    wanted = normal(draws, GROUPS[0], 2.0) * [1, 0, 1]
    np.testing.assert_allclose(found["z"].values, wanted, rtol=1e-5)


def test_draws_are_gone_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = run(regression, Y, 4)
    whole = fe.add_log_likelihood(draws, regression, Y, 4).log_likelihood["y"]
    monkeypatch.setattr("ppl_fe.inference.program.minibatches.VALUES_AT_ONCE", 9)
    parts = fe.add_log_likelihood(draws, regression, Y, 4).log_likelihood["y"]
    xr.testing.assert_identical(whole, parts)


def test_loo_is_near_the_closed_form_of_a_conjugate_model() -> None:
    def conjugate(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    kernel = fe.BAOAB(conjugate, step_size=0.05, friction=3.0)
    draws = fe.sample(
        kernel, Y, num_samples=500, thinning=2, warmup_steps=100, compile="traced",
        progress_bar=False,
    )  # fmt: skip
    found = azs.loo(fe.add_log_likelihood(draws, conjugate, Y))
    # p(y_i | the others) of a normal mean with prior N(0, 10²): normal, with these moments.
    precision = 0.01 + len(Y) - 1
    left_out = dist.Normal((Y.sum() - Y) / precision, (1 + 1 / precision) ** 0.5)
    assert found.elpd == pytest.approx(left_out.log_prob(Y).sum().item(), abs=0.05)


def test_a_program_that_observes_nothing_is_refused() -> None:
    def prior() -> None:
        pyro.sample("mean", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="no observed site"):
        fe.add_log_likelihood(run(prior), prior)


def test_other_data_are_refused() -> None:
    draws = run(regression, Y)
    with pytest.raises(TypeError, match="data must be the arguments"):
        fe.add_log_likelihood(draws, regression, Y, 4, 5)
    with pytest.raises(ValueError, match="holds 1 NaN"):
        fe.add_log_likelihood(draws, regression, torch.tensor([1.0, float("nan")]))


def test_draws_with_a_site_that_the_program_has_not_are_refused() -> None:
    def robust(y: Tensor, size: int | None) -> None:
        freedom = pyro.sample("freedom", dist.Gamma(2.0, 0.1))
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.StudentT(freedom, mean, scale), obs=y)

    draws = run(robust, Y, None)
    message = r"another program: they have the sites \['freedom'\]"
    with pytest.raises(ValueError, match=message):
        fe.add_log_likelihood(draws, regression, Y)
    with pytest.raises(ValueError, match=message):
        stein_check(draws, regression, (Y, None))


def test_arguments_in_the_old_form() -> None:
    draws = run(regression, Y, 4)
    now = fe.add_log_likelihood(draws, regression, Y, size=4).log_likelihood["y"]
    for old in ((Y, 4), {"y": Y, "size": 4}):
        with pytest.warns(DeprecationWarning, match="program's arguments as one"):
            before = fe.add_log_likelihood(draws, regression, old).log_likelihood["y"]
        xr.testing.assert_identical(now, before)
    with pytest.warns(DeprecationWarning, match="program's arguments as one"):
        fe.add_log_likelihood(draws, regression, data=(Y, 4))
