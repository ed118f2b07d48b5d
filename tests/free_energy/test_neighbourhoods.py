"""Which γ is taken, with every free energy exact: no chain is run here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from cases.fresh_heads import (
    D_BODY,
    DATA,
    TRUE,
    TwoParts,
    body_state,
    exactly,
    uninterrupted,
    with_body,
)
from torch import Tensor

import ppl_fe as fe
from ppl_fe.free_energy import neighbourhoods
from ppl_fe.free_energy.ladders import Climbed, Ladders

BODIES = [TRUE[:D_BODY] + shift * np.array([1.0, -1.0, 1.0, 1.0]) for shift in (0.4, 0.8, 1.2)]


@pytest.fixture
def climb_exactly(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have closed forms in place of chains, which at some γ may not mix or not stay finite."""

    def install(*, mixes_above: float = 0.0, finite_above: float = 0.0) -> None:
        def climb(ladders: Ladders, anchors: Tensor) -> tuple[list[Climbed], xr.DataTree]:
            gamma = float(ladders.options.localization)
            if gamma < finite_above:
                raise fe.DivergedError("not finite")
            r_hat = 1.0 if gamma > mixes_above else 1.5
            rung = {"energy": 1.0, "energy_mcse": 0.1, "r_hat": r_hat, "ess": 500.0}
            values = [
                exactly(body, gamma).free_energy for body in anchors[:, :D_BODY].double().numpy()
            ]
            ladder = pd.DataFrame([rung, rung])
            return [Climbed(value, 0.1, 0.0, ladder) for value in values], uninterrupted()

        monkeypatch.setattr(Ladders, "climb", climb)
        monkeypatch.setattr(Ladders, "placed", lambda ladders, anchors: ladders)

    return install


def choose(**settings: Any) -> pd.DataFrame:
    return fe.choose_checkpoint(
        {f"number {k}": body_state(body) for k, body in enumerate(BODIES)},
        TwoParts(),
        DATA,
        likelihood="normal",
        head="head",
        features="body",
        criteria=["free_energy"],
        compile="eager",
        progress_bar=False,
        **settings,
    )


def evidence(gamma: float) -> float:
    return float(np.mean([exactly(body, gamma).free_energy for body in BODIES]))


def test_gamma_has_the_largest_mean_evidence_of_a_grid_without_edges(
    climb_exactly: Callable[..., None],
) -> None:
    climb_exactly()
    table = choose()
    grid = [10 ** (k / 2) for k in range(-8, 13)]
    chosen = table.attrs["localization"]
    assert chosen == pytest.approx(min(grid, key=evidence))
    assert list(table.index) == ["number 0", "number 1", "number 2"]
    assert table["free_energy"].tolist() == pytest.approx(
        [exactly(body, chosen).free_energy for body in BODIES], rel=1e-5
    )
    tried = pd.DataFrame(table.attrs["neighbourhoods"])
    assert tried["localization"].min() < chosen < tried["localization"].max()


def test_a_gamma_whose_chains_did_not_mix_or_diverged_is_not_taken(
    climb_exactly: Callable[..., None],
) -> None:
    best = min((10 ** (k / 2) for k in range(-8, 13)), key=evidence)
    climb_exactly(mixes_above=1.1 * best, finite_above=0.9 * best)
    table = choose()
    assert table.attrs["localization"] == pytest.approx(10**0.5 * best)
    assert not table["note"].any()


def test_where_no_chains_mix_no_row_is_lost_and_none_recommended(
    climb_exactly: Callable[..., None],
) -> None:
    climb_exactly(mixes_above=np.inf)
    table = choose()
    assert table["note"].str.contains("no free energy: .*mixed at none of γ = ").all()
    assert table["free_energy"].isna().all()
    assert table.attrs["recommendation"].startswith("No checkpoint can be recommended")


def test_an_integral_by_itself_chooses_its_gamma_too(
    climb_exactly: Callable[..., None],
) -> None:
    """It says so where it prints."""
    climb_exactly()
    found = fe.integrate_free_energy(
        with_body(BODIES[1]),
        DATA,
        likelihood="normal",
        head="head",
        localization="auto",
        progress_bar=False,
    )
    exact = {
        gamma: exactly(BODIES[1], gamma).free_energy
        for gamma in (10 ** (k / 2) for k in range(-8, 13))
    }
    best = min(exact, key=lambda gamma: exact[gamma])
    assert found.localization == pytest.approx(best)
    assert found.free_energy == pytest.approx(exact[best], rel=1e-5)
    assert found.neighbourhoods is not None
    tried = found.neighbourhoods["localization"]
    assert (
        f"; γ = {best:.4g} by the data's evidence, within {tried.min():.4g} to {tried.max():.4g}"
        in str(found)
    )


class Constructed:
    """In place of ladders: at every γ a mean −log Z, a spread over candidates, and an error.

    The evidence is largest at γ = 1, and the spread grows with γ while the error is the same.
    """

    def __init__(self, error: float, spread: float, gamma: float = 1.0) -> None:
        self.error, self.spread, self.gamma = error, spread, gamma

    def at(self, gamma: float) -> Constructed:
        return Constructed(self.error, self.spread, gamma)

    def placed(self, anchors: Tensor) -> Constructed:
        return self

    def climb(self, anchors: Tensor) -> tuple[list[Climbed], xr.DataTree]:
        places = np.linspace(-1.0, 1.0, len(anchors)) if len(anchors) > 1 else np.zeros(1)
        values = abs(np.log(self.gamma)) + self.spread * self.gamma * places
        ladder = pd.DataFrame([{"r_hat": 1.0, "ess": 500.0}] * 2)
        return [Climbed(float(one), self.error, 0.0, ladder) for one in values], uninterrupted()


def chosen(monkeypatch: pytest.MonkeyPatch, error: float, spread: float, count: int) -> Any:
    monkeypatch.setattr(neighbourhoods, "natural_localization", lambda ladders, anchors: 1.0)
    return neighbourhoods.best_neighbourhood(
        cast(Ladders, Constructed(error, spread)), torch.zeros(count, 1)
    )


def test_where_the_evidence_is_largest_but_tells_nothing_apart_a_narrower_gamma_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of three candidates at −1, 0, 1 the variance is spread² γ², so that γ² has to be 10 times."""
    found = chosen(monkeypatch, 0.5, 0.5 * 10**0.25, 3)
    assert found.best == pytest.approx(10**0.5)
    tried = found.tried.set_index(found.tried["localization"].round(3))
    assert tried["free_energy"].idxmin() == 1.0
    assert tried["reliability"][1.0] == pytest.approx(1 - 10**-0.5)
    assert tried["reliability"][3.162] == pytest.approx(1 - 10**-1.5)
    assert "γ = 3.16: the labels are likeliest at 1, where" in found.why
    assert "(its error is 0.56 of their spread), and here it does" in found.why


def test_a_gamma_that_tells_apart_by_the_evidence_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much better the narrow ones tell."""
    found = chosen(monkeypatch, 0.1, 0.5, 3)
    assert found.best == 1.0
    assert found.why == (
        "γ = 1: the labels are likeliest at 1 (its error is 0.20 of their spread)."
    )


@pytest.mark.parametrize(("spread", "count"), [(0.0, 3), (1e-9, 1)])
def test_equal_candidates_and_a_single_one_keep_the_evidence(
    monkeypatch: pytest.MonkeyPatch, spread: float, count: int
) -> None:
    found = chosen(monkeypatch, 0.5, spread, count)
    assert found.best == 1.0


def test_where_no_gamma_tells_apart_it_is_the_one_that_does_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(neighbourhoods, "MOST_TRIED", 4)
    found = chosen(monkeypatch, 0.5, 0.02, 3)
    assert found.best == pytest.approx(10**1.5)
    assert 0 < found.tried["reliability"].iloc[-1] < neighbourhoods.TELLING
