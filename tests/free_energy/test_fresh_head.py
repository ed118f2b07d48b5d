"""A fresh head has a prior of its own: closed forms of a network that is linear in both parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases.fresh_heads import D_BODY, D_HEAD, DATA, QUIET, TRUE, TwoParts, X, Y, exactly, with_body
from scipy.stats import norm

import ppl_fe as fe
from ppl_fe.free_energy.neighbourhoods import descend
from ppl_fe.inference.program.density import Density

FAR = np.array([0.1, 0.2, 0.3, -0.4])  # a body that did not fit these data
GAMMA, TAU = 20.0, 2.0
HEAD: dict[str, Any] = {"head": "head", "head_precision": TAU, "localization": GAMMA}
SHORT: dict[str, Any] = {**QUIET, "num_samples": 20, "warmup_steps": 10, "compile": "eager"}


def test_the_density_is_the_localiser_of_the_body_and_the_prior_of_the_head() -> None:
    program = fe.models.local_posterior(
        with_body(FAR), "normal", GAMMA, 0.5, None, head="head", head_precision=TAU
    )
    position = torch.linspace(-1.0, 1.0, 7)
    scales = torch.tensor([GAMMA**-0.5] * D_BODY + [TAU**-0.5] * D_HEAD)
    center = torch.tensor([*FAR, 0.0, 0.0, 0.0], dtype=torch.float32)
    # The latent site is the distance in prior standard deviations, whose Jacobian is their product.
    terms = Density(program, DATA)((position - center) / scales)
    w = position.double().numpy()
    body = np.sum(norm.logpdf(w[:D_BODY], FAR, GAMMA**-0.5))
    head = np.sum(norm.logpdf(w[D_BODY:], 0.0, TAU**-0.5))
    likelihood = np.sum(norm.logpdf(Y, X @ w, 1.0))
    expected = body + head + scales.log().sum().item() + 0.5 * likelihood
    assert terms.log_density.item() == pytest.approx(expected, rel=1e-5)
    assert terms.log_likelihood.item() == pytest.approx(likelihood, rel=1e-5)


@pytest.mark.thorough
def test_the_expected_loss_is_exact() -> None:
    found = fe.estimate_free_energy(
        with_body(FAR), DATA, inverse_temperature=1.0, batch_size=None, **HEAD, **QUIET
    )
    exact = exactly(FAR, GAMMA, head_precision=TAU)
    assert found.anchor_loss == pytest.approx(exact.anchor_loss, rel=1e-5)
    assert abs(found.wbic - exact.wbic) < max(3 * found.wbic_mcse, 0.2)
    assert found.wbic_mcse < 0.3
    # A head of zeros is no minimum, and nobody claims that it were.
    assert exact.llc < -1
    assert not any("off its minimum" in note for note in found.notes)
    assert found.draws.attrs["fresh_head"] == "head"
    assert "below_anchor" not in fe.diagnose(found.draws).table.index


@pytest.mark.thorough
@pytest.mark.parametrize(("gamma", "tau"), [(GAMMA, TAU), (200.0, 0.5)])
def test_the_downstream_free_energy_is_exact(gamma: float, tau: float) -> None:
    found = fe.integrate_free_energy(
        with_body(FAR),
        DATA,
        localization=gamma,
        head="head",
        head_precision=tau,
        num_rungs=12,
        num_samples=1000,
        warmup_steps=300,
        **QUIET,
    )
    exact = exactly(FAR, gamma, head_precision=tau)
    assert abs(found.free_energy - exact.free_energy) < max(3 * found.mcse, 0.2)
    assert found.mcse < 0.3
    last = found.ladder.iloc[-1]
    assert abs(last["energy"] - exact.wbic) < max(3 * last["energy_mcse"], 0.2)
    # Not what the head held by the body's localiser gives.
    held = exactly(FAR, gamma, head_precision=gamma).free_energy
    assert abs(held - exact.free_energy) > 1


def test_what_a_fresh_head_holds_does_not_matter() -> None:
    network, other = with_body(FAR), with_body(FAR)
    with torch.no_grad():
        other.anchor[D_BODY:] = 100.0
    densities = [
        Density(fe.models.local_posterior(one, "normal", GAMMA, 1.0, None, head="head"), DATA)
        for one in (network, other)
    ]
    position = torch.linspace(-1.0, 1.0, 7)
    assert densities[0](position) == densities[1](position)


def test_a_head_that_is_not_there_or_has_no_prior_is_refused() -> None:
    network = with_body(FAR)
    for function in (fe.estimate_free_energy, fe.integrate_free_energy):
        with pytest.raises(ValueError, match="head='haed' names no parameter; did you mean 'head'"):
            function(network, DATA, head="haed", **SHORT)
        with pytest.raises(ValueError, match="head_precision must be a positive number, got 0"):
            function(network, DATA, head="head", head_precision=0.0, **SHORT)


GRID = 10 ** (np.arange(-4, 9) / 2)


@pytest.mark.parametrize("shift", [0.6, 1.0, 1.5])
def test_the_walk_over_gamma_ends_at_the_largest_evidence(shift: float) -> None:
    body = TRUE[:D_BODY] + shift * np.array([1.0, -1.0, 1.0, 1.0])
    for start in (-1, 2, 5):
        found = descend(lambda place: exactly(body, 10 ** (place / 2)).free_energy, start)
        best = min(found, key=lambda place: found[place])
        assert found[best] == min(exactly(body, gamma).free_energy for gamma in GRID)
        assert {best - 1, best + 1} <= set(found)


@pytest.mark.thorough
@pytest.mark.parametrize("shift", [pytest.param(0.6, marks=pytest.mark.slow), 1.5])
def test_gamma_is_chosen_where_the_evidence_is_largest(shift: float) -> None:
    body = TRUE[:D_BODY] + shift * np.array([1.0, -1.0, 1.0, 1.0])
    found = fe.integrate_free_energy(
        with_body(body),
        DATA,
        localization="auto",
        head="head",
        num_rungs=12,
        num_samples=1000,
        warmup_steps=200,
        **QUIET,
    )
    best = min(exactly(body, gamma).free_energy for gamma in GRID)
    chosen = exactly(body, found.localization).free_energy
    assert chosen - best < max(3 * found.mcse, 0.2)
    assert abs(found.free_energy - chosen) < max(3 * found.mcse + found.ladder_error, 0.2)
    tried = found.neighbourhoods
    assert tried is not None
    # Both neighbours were looked at, and the difference to each is that of the closed forms.
    assert tried["localization"].min() < found.localization < tried["localization"].max()
    for gamma, value, mcse in tried.iloc[:, :3].to_numpy():
        assert abs(value - exactly(body, gamma).free_energy) < max(4 * mcse, 0.3)
    assert f"γ = {found.localization:.4g} by the data's evidence, within" in str(found)
    assert found.draws.attrs["localization"] == found.localization


def test_one_run_cannot_keep_the_draws_of_several_neighbourhoods(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="save_to keeps one run"):
        fe.integrate_free_energy(with_body(FAR), DATA, localization="auto", save_to=tmp_path / "a")


def test_the_case_is_what_it_says() -> None:
    network = with_body(FAR)
    assert network.names == ("body.weight", "head.weight")
    output = network(torch.tensor(TRUE, dtype=torch.float32), DATA[0])[:, 0]
    assert output.numpy() == pytest.approx(X @ TRUE, rel=1e-4, abs=1e-5)
    assert Y.shape == (len(X),)
    assert isinstance(network.module, TwoParts)
