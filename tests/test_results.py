"""What the functions return prints well, in a terminal, in a notebook and as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from cases.selection import means, observed_weights, select
from cases.tuning import HEAD, LABELS, X, tune

import ppl_fe as fe
from ppl_fe.inference.run_plan import RunLength, RunPlan


class Tags(HTMLParser):
    """Tags that are opened must be closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def data() -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    return inputs, inputs.sum(1)


@pytest.fixture(scope="module")
def estimate(data: tuple[torch.Tensor, torch.Tensor]) -> fe.FreeEnergyEstimate:
    network = fe.FlatNetwork(torch.nn.Linear(2, 1, bias=False))
    return fe.estimate_free_energy(
        network,
        data,
        likelihood="normal",
        num_samples=20,
        warmup_steps=20,
        progress_bar=False,
    )


@pytest.fixture(scope="module")
def integral(data: tuple[torch.Tensor, torch.Tensor]) -> fe.ThermodynamicEstimate:
    network = fe.FlatNetwork(torch.nn.Linear(2, 1, bias=False))
    return fe.integrate_free_energy(
        network,
        data,
        likelihood="normal",
        num_rungs=4,
        num_samples=20,
        warmup_steps=20,
        progress_bar=False,
    )


def test_an_estimate_prints_the_same_everywhere(estimate: fe.FreeEnergyEstimate) -> None:
    assert repr(estimate) == str(estimate)
    assert len(str(estimate).splitlines()) < 12
    assert f"{estimate.wbic:.2f} ± {estimate.wbic_mcse:.2f} nats" in repr(estimate)
    assert Tags(estimate._repr_html_()).seen >= {"table", "tr", "td"}


def test_an_estimate_as_netcdf(estimate: fe.FreeEnergyEstimate, tmp_path: Path) -> None:
    assert estimate.notes, "a short run has something to be told"
    estimate.to_netcdf(tmp_path / "a.nc")
    with xr.open_datatree(tmp_path / "a.nc") as found:
        found.load()
    xr.testing.assert_equal(found, estimate.draws)
    for name in ("wbic", "wbic_mcse", "llc", "llc_mcse", "anchor_loss", "r_hat", "ess", "num_data"):
        assert found.attrs[name] == getattr(estimate, name), name
    assert tuple(json.loads(found.attrs["notes"])) == estimate.notes
    assert "wbic" not in estimate.draws.attrs


def test_an_integral(integral: fe.ThermodynamicEstimate, tmp_path: Path) -> None:
    assert repr(integral) == str(integral)
    assert len(repr(integral)) < 300
    assert Tags(integral._repr_html_()).seen >= {"p", "table"}
    table = integral.to_dataframe()
    pd.testing.assert_frame_equal(table, integral.ladder)
    table.loc[:, "energy"] = 0.0
    assert (integral.ladder["energy"] != 0).all(), "the table is the caller's own"
    integral.to_netcdf(tmp_path / "a.nc")
    with xr.open_datatree(tmp_path / "a.nc") as found:
        found.load()
    assert found.attrs["free_energy"] == integral.free_energy
    ladder = found["ladder"].to_dataset()
    for name in integral.ladder:
        np.testing.assert_array_equal(ladder[name].values, integral.ladder[name])
    xr.testing.assert_equal(
        found["posterior"].to_dataset(), integral.draws["posterior"].to_dataset()
    )


def test_a_selection_as_a_table() -> None:
    found = select(*means(copies=4), likelihood=observed_weights)
    table = found.to_dataframe()
    assert len(table) == 20
    assert table["selected"].tolist() == found.mask.tolist()
    assert set(table["tensor"]) == {"w"}
    assert found.scale_mean is not None
    np.testing.assert_array_equal(table["scale_mean"], found.scale_mean.numpy())
    assert Tags(found._repr_html_()).seen >= {"table", "p"}


def test_a_selection_without_scales_has_no_columns_of_them() -> None:
    slices = {"weight": slice(0, 2), "bias": slice(2, 3)}
    mask = torch.tensor([True, False, True])
    table = fe.Selection("random", torch.tensor([3.0, 1.0, 2.0]), mask, slices).to_dataframe()
    assert list(table) == ["tensor", "selected", "score"]
    assert table["tensor"].tolist() == ["weight", "weight", "bias"]
    assert table["score"].tolist() == [3.0, 1.0, 2.0]


def test_what_was_tuned() -> None:
    tuned = tune(validation=(X, LABELS), evaluate_every=10)
    text = repr(tuned)
    assert str(tuned) == text
    assert "4 of 37 parameters" in text
    first, last = tuned.history["loss"].iloc[[1, -1]]  # row 0 is the validation before training
    assert f"{first:.4f} at first, {last:.4f} at last" in text
    there = tuned.history.set_index("step").loc[tuned.step]
    assert f"{there['validation_accuracy']:.4f} there" in text
    assert "fresh head" not in text
    assert Tags(tuned._repr_html_()).seen == {"table", "caption", "tr", "th", "td"}
    pd.testing.assert_frame_equal(tuned.to_dataframe(), tuned.history)
    assert tuned.to_dataframe() is not tuned.history


def test_a_fresh_head_is_told() -> None:
    text = repr(tune(head=HEAD))
    assert "fresh head" in text
    assert "2.weight, 2.bias" in text


def test_names_are_escaped_in_html() -> None:
    slices = {"<b>weight": slice(0, 1)}
    found = fe.Selection("random", torch.rand(1), torch.tensor([True]), slices, notes=("a < b",))
    assert "<b>" not in found._repr_html_()
    assert "a &lt; b" in found._repr_html_()


def model() -> None: ...


def energy(values: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return values["w"] ** 2


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        (fe.BAOAB(model), ["BAOAB", "program", "model", "step_size", "&#x27;auto&#x27;"]),
        (fe.MALT(potential_fn=energy), ["MALT", "potential", "energy", "target_acceptance"]),
        (fe.FlatNetwork(torch.nn.Linear(2, 1), ["bias"]), ["Linear", "1 of 3", "float32", "cpu"]),
        (RunPlan(RunLength(7), num_chains=3), ["num_samples", "<td>7</td>", "num_chains"]),
    ],
    ids=lambda shown: type(shown).__name__,
)
def test_settings_are_a_table_in_a_notebook_of_either_colour(shown: Any, said: list[str]) -> None:
    html = shown._repr_html_()
    assert Tags(html).seen == {"table", "caption", "tr", "th", "td"}
    assert all(text in html for text in said)
    assert "style" not in html


def test_a_program_s_name_is_escaped() -> None:
    html = fe.SGLD(lambda: None)._repr_html_()
    assert "&lt;lambda&gt;" in html
