"""ArviZ works on what `fe.sample` returns: 1.x as it is, 0.23 through its own bridge."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from arviz_stats.base import array_stats

import ppl_fe as fe

matplotlib = pytest.importorskip("matplotlib")
az = pytest.importorskip("arviz", reason="ArviZ is not installed")

MAJOR = int(az.__version__.split(".")[0])
NAMES = ["scale", "w[0]", "w[1]", "w[2]"]


Y = torch.linspace(-1, 1, 40)


def model(y: torch.Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(w.sum(), scale), obs=y)


@pytest.fixture(scope="module")
def draws() -> xr.DataTree:
    return fe.sample(
        fe.BAOAB(model),
        Y,
        num_samples=200,
        warmup_steps=2000,
        progress_bar=False,
    )


@pytest.fixture(autouse=True)
def _no_window() -> Iterator[None]:
    """Pictures are drawn, not shown, and pyplot is left as it was found."""
    import matplotlib.pyplot as plt

    before = plt.get_backend()
    plt.switch_backend("agg")
    yield
    plt.close("all")
    plt.switch_backend(before)


def r_hat(draws: xr.DataTree) -> dict[str, Any]:
    """By the same functions on plain arrays."""
    axes = {"chain_axis": 0, "draw_axis": 1}
    posterior = draws["posterior"].to_dataset()
    return {
        name: array_stats.rhat(posterior[name].values.astype(float), **axes, method="rank")
        for name in ("scale", "w")
    }


def check(draws: xr.DataTree, given: Any, traced: list[str]) -> None:
    summary = az.summary(given, round_to=6) if MAJOR == 0 else az.summary(given, round_to="none")
    assert sorted(summary.index) == NAMES
    mean = draws["posterior"].to_dataset()["w"].mean(("chain", "draw")).values
    np.testing.assert_allclose(summary.loc[NAMES[1:], "mean"].astype(float), mean, atol=1e-5)
    found = az.rhat(given)
    for name, expected in r_hat(draws).items():
        # ArviZ computes in the draws' own single precision.
        np.testing.assert_allclose(found[name].values, expected, rtol=5e-4)
    assert traced == NAMES


@pytest.mark.skipif(MAJOR > 0, reason="ArviZ 0.23, the last on Python 3.11, is not installed")
def test_arviz_0_through_its_own_bridge(draws: xr.DataTree) -> None:
    given = az.InferenceData.from_datatree(draws)
    assert given.groups() == ["posterior", "sample_stats", "observed_data", "moments"]
    drawn = az.plot_trace(given, compact=False)
    assert drawn.shape == (4, 2)
    trace = draws["posterior"].to_dataset()["scale"].values
    lines = [line.get_ydata() for line in drawn[_row(drawn, "scale"), 1].get_lines()]
    np.testing.assert_allclose(lines[: len(trace)], trace)
    titles = [axes.get_title().replace("\n", "[") for axes in drawn[:, 0]]
    named = [f"{title}]" if "[" in title else title for title in titles]
    check(draws, given, sorted(named))


def _row(drawn: Any, name: str) -> int:
    return [axes.get_title() for axes in drawn[:, 0]].index(name)


@pytest.mark.skipif(MAJOR == 0, reason="ArviZ 1.x needs Python 3.12; here is 0.x")
def test_arviz_1_as_it_is(draws: xr.DataTree) -> None:
    drawn = az.plot_trace(draws, backend="matplotlib")
    plots = drawn.viz["plot"]
    traced = [str(name) for name, one in plots.data_vars.items() if not one.dims]
    traced += [f"w[{k}]" for k in plots["w"]["w_dim_0"].values]
    lines = drawn.viz["trace"]["scale"]
    trace = draws["posterior"].to_dataset()["scale"]
    for chain in trace["chain"].values:
        found = lines.sel(chain=chain).item().get_ydata()
        np.testing.assert_allclose(found, trace.sel(chain=chain).values)
    check(draws, draws, sorted(traced))


def test_predictions_and_comparisons(draws: xr.DataTree) -> None:
    """The picture has the data as its observed line; the right model comes first."""

    def narrow(y: torch.Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(w.sum(), 0.1 * scale), obs=y)

    whole = fe.add_posterior_predictive(draws, model, Y)
    compared = {
        name: fe.add_log_likelihood(draws, program, Y)
        for name, program in {"right": model, "narrow": narrow}.items()
    }
    if MAJOR == 0:
        axes = az.plot_ppc(az.InferenceData.from_datatree(whole), kind="cumulative", random_seed=1)
        observed = next(line for line in axes.get_lines() if line.get_label() == "Observed")
        np.testing.assert_allclose(np.sort(observed.get_xdata())[[0, -1]], [-1, 1], atol=0.1)
        given = {name: az.InferenceData.from_datatree(one) for name, one in compared.items()}
    else:
        az.plot_ppc_dist(whole, backend="matplotlib")
        given = compared
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the narrow model's importance ratios
        assert list(az.compare(given).index) == ["right", "narrow"]
        loo = az.loo(given["right"])
    assert float(loo.elpd_loo if MAJOR == 0 else loo.elpd) < 0
