"""What an estimate says of itself: its table, its notes, and what the numbers refer to."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from cases.rankings import Cliff
from torch import nn

import ppl_fe as fe
from ppl_fe.diagnostics.checks.mixing import mixing_notes
from ppl_fe.free_energy.estimators import loss_summary, summarize_group
from ppl_fe.free_energy.local_chains import LocalChains

N = 60
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(91))
FAST: dict[str, Any] = {
    "likelihood": "normal",
    "compile": "traced",
    "progress_bar": False,
    "batch_size": None,
}
SHORT: dict[str, Any] = {**FAST, "num_samples": 20, "thinning": 1, "warmup_steps": 20}


def line(*weights: float) -> fe.FlatNetwork:
    module = nn.Linear(3, 1, bias=False)
    return fe.FlatNetwork(module).with_state({"weight": torch.tensor([weights])})


ZERO = line(0.0, 0.0, 0.0)
DATA = X, torch.zeros(N)


@pytest.fixture(scope="module")
def good() -> fe.FreeEnergyEstimate:
    return fe.estimate_free_energy(ZERO, DATA, **FAST, num_chains=8, num_samples=250, seed=3)


@pytest.fixture(scope="module")
def poor() -> fe.FreeEnergyEstimate:
    far = line(1.0, -1.0, 2.0)
    return fe.estimate_free_energy(far, DATA, **{**SHORT, "batch_size": 1000}, localization=50.0)


def test_the_numbers_belong_together(good: fe.FreeEnergyEstimate) -> None:
    assert good.num_data == N
    assert good.inverse_temperature == pytest.approx(1 / math.log(N))
    assert good.anchor_loss == pytest.approx(0.5 * math.log(2 * math.pi), rel=1e-6)
    # WBIC = nL(w*) + λ̂ log n
    assert good.wbic == pytest.approx(N * good.anchor_loss + good.llc * math.log(N), rel=1e-9)
    assert good.wbic_mcse == pytest.approx(good.llc_mcse * math.log(N), rel=1e-9)
    assert good.notes == ()
    assert good.r_hat < 1.01
    assert good.ess > 400
    assert good.step_size == pytest.approx(max(good.draws.attrs["tuned_step_size"]))


def test_printing(good: fe.FreeEnergyEstimate, poor: fe.FreeEnergyEstimate) -> None:
    text = str(good)
    assert f"{good.wbic:.2f} ± {good.wbic_mcse:.2f} nats" in text
    assert f"{good.llc:.3f} ± {good.llc_mcse:.3f}" in text
    assert f"n = {N}" in text
    assert "note" not in text
    assert str(poor).count("\nnote: ") == len(poor.notes) > 2


def test_error_bars_that_are_worth_nothing_are_not_printed(
    good: fe.FreeEnergyEstimate,
) -> None:
    for r_hat, ess in ((1.4, 900.0), (1.0, 5.0)):
        bad = replace(good, r_hat=r_hat, ess=ess)
        assert f"{good.wbic:.2f} ± — nats" in str(bad)
        assert f"{good.llc:.3f} ± —" in str(bad)
    # What failed is named, and nothing else.
    for (r_hat, ess), (said, unsaid) in {
        (1.4, 900.0): ("R-hat 1.400 (below 1.01 if mixed), so that the error bars are", "ESS"),
        (1.0, 5.0): ("ESS 5 (above 400 if mixed), so that the error bars are", "R-hat"),
        (1.02, 900.0): ("R-hat 1.020 (below 1.01 if mixed); raise", "worth nothing"),
    }.items():
        (note,) = mixing_notes(r_hat, ess)
        assert said in note
        assert unsaid not in note


def test_printing_in_a_notebook(poor: fe.FreeEnergyEstimate) -> None:
    html = poor._repr_html_()
    assert html.startswith("<table>")
    assert html.count("<th>note</th>") == len(poor.notes)
    # The notes speak of λ̂ < 0, which must not open a tag.
    assert "λ̂ &lt; 0" in html
    assert "< 0" not in html


def test_to_dataframe(good: fe.FreeEnergyEstimate, poor: fe.FreeEnergyEstimate) -> None:
    (row,) = good.to_dataframe().to_dict("records")
    assert row["note"] == ""
    for name in ("wbic", "wbic_mcse", "llc", "llc_mcse", "anchor_loss", "r_hat", "ess"):
        assert row[name] == getattr(good, name)
    assert poor.to_dataframe()["note"].item() == "; ".join(poor.notes)


def said(estimate: fe.FreeEnergyEstimate, start: str) -> bool:
    return any(note.startswith(start) for note in estimate.notes)


def test_a_checkpoint_off_its_minimum_is_told(poor: fe.FreeEnergyEstimate) -> None:
    assert poor.llc < 0
    assert said(poor, "off its minimum")


def test_chains_that_have_not_mixed_are_told(poor: fe.FreeEnergyEstimate) -> None:
    assert poor.ess < 400
    assert said(poor, "not mixed")


def test_a_short_warm_up_is_told() -> None:
    # 1/√(εγ) steps: far more than 20 at this localisation.
    loose = fe.estimate_free_energy(ZERO, DATA, **SHORT, localization=1e-3)
    assert said(loose, "short warm-up: 20 steps")


def test_a_batch_larger_than_the_data_is_told(poor: fe.FreeEnergyEstimate) -> None:
    assert said(poor, f"batch_size=1000 exceeds the data's {N} examples")
    assert poor.draws.attrs["batch_size"] == N
    assert not said(fe.estimate_free_energy(ZERO, DATA, **{**SHORT, "batch_size": N}), "batch")


def test_three_draws_have_a_mean_and_no_error_bar() -> None:
    found = fe.estimate_free_energy(ZERO, DATA, **{**SHORT, "num_samples": 3})
    assert math.isfinite(found.wbic)
    assert math.isnan(found.wbic_mcse)
    assert said(found, "not mixed")
    assert math.isnan(loss_summary(torch.zeros(2, 3).numpy())[2])


def test_failed_chains_are_left_out_and_told() -> None:
    options: dict[str, Any] = {
        "kernel": fe.SGLD,
        "step_size": 0.1,
        "num_chains": 32,
        "num_samples": 50,
    }
    tiny = torch.full((N, 1), 1e-3), torch.zeros(N)
    # Some chains fall off, others never come near.
    with pytest.warns(RuntimeWarning, match="left out: chain"):
        found = fe.estimate_free_energy(fe.FlatNetwork(Cliff(2.5)), tiny, **{**SHORT, **options})
    kept = found.draws.sample_stats.sizes["chain"]
    assert 0 < kept < 32
    assert math.isfinite(found.wbic)
    assert said(found, f"{32 - kept} of 32 chains became non-finite and were left out")


def test_no_chain_left_is_an_error() -> None:
    with pytest.raises(FloatingPointError, match="smaller step_size"):
        fe.estimate_free_energy(ZERO, DATA, **FAST, kernel=fe.SGLD, step_size=10.0)


def test_half_the_step_exposes_a_step_that_is_too_large() -> None:
    options = {
        **FAST,
        "kernel": fe.SGLD,
        "num_chains": 32,
        "num_samples": 40,
        "thinning": 4,
        "warmup_steps": 150,
        "check_half_step": True,
    }
    # Curvatures near N/log N + 1 ≈ 16: εa/4 ≈ 1/2 doubles the variance.
    rough = fe.estimate_free_energy(ZERO, DATA, **options, step_size=0.12)
    assert said(rough, "at half the step")
    assert "the step is too large, use step_size=0.06" in rough.notes[-1]
    fine = fe.estimate_free_energy(ZERO, DATA, **options, step_size=0.004)
    assert said(fine, "at half the step")
    assert "too large" not in fine.notes[-1]


def test_downstream_free_energy_of_the_same_body_with_another_head() -> None:
    torch.manual_seed(92)
    body = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    pretrained = nn.Sequential(body, nn.Linear(4, 5))
    downstream = nn.Sequential(body, nn.Linear(4, 2))
    x, y = torch.randn(40, 3), torch.arange(40) % 2
    network = fe.FlatNetwork(downstream)
    options = {**SHORT, "likelihood": "categorical"}
    found = fe.estimate_free_energy(network, (x, y), **options)
    assert found.num_data == 40
    loss = nn.functional.cross_entropy(downstream(x), y).item()
    assert found.anchor_loss == pytest.approx(loss, rel=1e-5)
    assert found.draws.posterior["w"].sizes["w_dim_0"] == 16 + 10
    upstream = fe.estimate_free_energy(
        fe.FlatNetwork(pretrained), (X, torch.arange(N) % 5), **options
    )
    assert upstream.num_data == N
    assert upstream.draws.posterior["w"].sizes["w_dim_0"] == 16 + 25


def test_losses_that_are_not_finite_on_average_are_an_error(good: fe.FreeEnergyEstimate) -> None:
    """A mean overflows where no single draw does."""
    draws = good.draws.copy(deep=True)
    stats = draws["sample_stats"].to_dataset()
    draws["sample_stats"] = stats.assign(loss=xr.full_like(stats["loss"].astype(float), 1.7e308))
    draws.attrs["target_missed"] = "max_steps=10 were taken"
    beta = torch.full((stats.sizes["chain"],), good.inverse_temperature)
    chains = LocalChains(draws, torch.tensor([good.anchor_loss]), N, beta, 1, ("told before",))
    with (
        np.errstate(over="ignore", invalid="ignore"),
        pytest.raises(fe.DivergedError, match="the mean loss of the draws is inf; give a smaller"),
    ):
        summarize_group(chains, 0)
    draws["sample_stats"] = stats
    found = summarize_group(chains, 0)
    assert found.wbic == good.wbic
    assert found.notes == ("told before", "the run ended because max_steps=10 were taken")
