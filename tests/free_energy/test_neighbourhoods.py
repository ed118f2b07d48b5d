"""Which γ is taken, with every free energy exact: no chain is run here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
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

    def install(*, mixes_above: float = 0.0, finite_above: float = 0.0, error: float = 0.1) -> None:
        def climb(ladders: Ladders, anchors: Tensor) -> tuple[list[Climbed], xr.DataTree]:
            gamma = float(ladders.options.localization)
            if gamma < finite_above:
                raise fe.DivergedError("not finite")
            r_hat = 1.0 if gamma > mixes_above else 1.5
            rung = {"energy": 1.0, "energy_mcse": 0.1, "r_hat": r_hat, "ess": 500.0}
            assert ladders.head is not None
            values = [
                exactly(body, gamma, head_precision=ladders.head.precision).free_energy
                for body in anchors[:, :D_BODY].double().numpy()
            ]
            ladder = pd.DataFrame([rung, rung])
            return [Climbed(value, error, 0.0, ladder) for value in values], uninterrupted()

        monkeypatch.setattr(Ladders, "climb", climb)
        monkeypatch.setattr(Ladders, "placed", lambda ladders, anchors: ladders)

    return install


def choose(head_precision: Any = 1.0, **settings: Any) -> pd.DataFrame:
    return fe.choose_checkpoint(
        {f"number {k}": body_state(body) for k, body in enumerate(BODIES)},
        TwoParts(),
        DATA,
        likelihood="normal",
        head="head",
        head_precision=head_precision,
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


@pytest.mark.parametrize("localization", ["auto", 0.1])
def test_the_heads_precision_is_chosen_with_it(
    localization: Any, climb_exactly: Callable[..., None]
) -> None:
    """No neighbour on the grid has more evidence, of either where both are chosen."""

    def mean(gamma: float, precision: float) -> float:
        each = [exactly(body, gamma, head_precision=precision).free_energy for body in BODIES]
        return float(np.mean(each))

    climb_exactly(error=1e-9)
    table = choose("auto", localization=localization)
    gamma, precision = (table.attrs[name] for name in ("localization", "head_precision"))
    assert precision != 1.0
    root, both = 10**0.5, localization == "auto"
    beside = [(1.0, root), (1.0, 1 / root)] + [(root, 1.0), (1 / root, 1.0)] * both
    best = mean(gamma, precision)
    assert all(mean(gamma * one, precision * other) > best for one, other in beside)
    assert both or gamma == 0.1
    assert table["free_energy"].tolist() == pytest.approx(
        [exactly(body, gamma, head_precision=precision).free_energy for body in BODIES], rel=1e-5
    )
    tried = pd.DataFrame(table.attrs["neighbourhoods"])
    assert list(tried)[:3] == ["localization", "head_precision", "free_energy"]
    said = f"The head's prior has a precision of {precision:.3g}, by the evidence."
    assert said in table.attrs["read_first"]
    assert tried["free_energy"].min() == pytest.approx(best, rel=1e-5)


def test_another_prior_of_the_head_has_to_gain_more_than_the_error(
    climb_exactly: Callable[..., None],
) -> None:
    """A step to 3.16 gains 0.05 nats here, and the error of that is 0.1 √(2/3)."""
    climb_exactly(error=0.1)
    table = choose("auto", localization=1.0)
    assert table.attrs["head_precision"] == 1.0
    tried = pd.DataFrame(table.attrs["neighbourhoods"])
    assert tried["head_precision"].round(3).tolist() == [0.316, 1.0, 3.162]
    before, after = tried["free_energy"].iloc[1:]
    assert 0 < before - after < 0.1 * (2 / 3) ** 0.5


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


@pytest.fixture
def construct(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have a mean −log Z that is least at γ = 1, about it a spread that grows with γ, an error."""

    def install(*, error: float, spread: float) -> None:
        def climb(ladders: Ladders, anchors: Tensor) -> tuple[list[Climbed], xr.DataTree]:
            gamma = float(ladders.options.localization)
            order = anchors[:, 0].argsort().argsort().double().numpy() - (len(anchors) - 1) / 2
            values = abs(np.log10(gamma)) + spread * gamma**0.5 * order
            ladder = pd.DataFrame(
                [{"energy": 1.0, "energy_mcse": 0.1, "r_hat": 1.0, "ess": 99.0}] * 2
            )
            return [Climbed(float(one), error, 0.0, ladder) for one in values], uninterrupted()

        monkeypatch.setattr(Ladders, "climb", climb)
        monkeypatch.setattr(Ladders, "placed", lambda ladders, anchors: ladders)

    return install


def test_where_the_evidence_tells_nothing_apart_the_next_gamma_that_does_is_taken(
    construct: Callable[..., None],
) -> None:
    """Of −1, 0, 1 times s√γ the variance is s²γ: errors are 1.12, 0.63, 0.35 of the spread, 0.2."""
    construct(error=0.5, spread=0.5 * 0.8**0.5)
    table = choose()
    assert table.attrs["localization"] == pytest.approx(10**1.5)
    tried = pd.DataFrame(table.attrs["neighbourhoods"])
    assert tried["free_energy"].idxmin() == list(tried["localization"].round(3)).index(1.0)
    told = {round(gamma, 1): round(value, 3) for gamma, value in table.attrs["reliability"].items()}
    assert told == {1.0: 0.0, 3.2: 0.605, 10.0: 0.875, 31.6: 0.960}
    assert table["free_energy"].std() == pytest.approx(0.5 * 0.8**0.5 * 10**0.75)
    assert (
        "γ = 31.6: the labels are likeliest at 1, where the error of −log Z is 1.00 of its spread "
        "over candidates; here it is 0.20." in table.attrs["read_first"]
    )


def test_the_evidence_is_kept_where_it_tells_apart(construct: Callable[..., None]) -> None:
    """However much better the narrow ones tell."""
    construct(error=0.1, spread=0.5)
    table = choose()
    assert table.attrs["localization"] == 1.0
    assert table.attrs["reliability"] == {1.0: pytest.approx(0.96)}
    assert "error of −log Z is 0.20 of its spread" in table.attrs["localization_why"]


def test_equal_candidates_keep_the_evidence(construct: Callable[..., None]) -> None:
    construct(error=0.5, spread=0.0)
    table = choose()
    assert table.attrs["localization"] == 1.0
    assert "no γ tells candidates apart" in table.attrs["localization_why"]


def test_where_no_gamma_tells_enough_it_is_the_one_that_tells_most(
    construct: Callable[..., None],
) -> None:
    construct(error=0.5, spread=0.2)
    table = choose()
    told = table.attrs["reliability"]
    assert 0 < max(told.values()) < neighbourhoods.TELLING
    assert table.attrs["localization"] == max(told) == pytest.approx(10**1.5)
