"""Every sampler on targets whose answer is known: Gaussians of any condition, a beta-binomial."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from exact import z_score
from inference.conformance import (
    AFFINE,
    PRECISIONS,
    SAMPLERS,
    SGNHT,
    Case,
    columns,
    covariance_scores,
    normal_draws,
    thermostat_law,
)
from scipy.stats import kstest

TEMPERATURE = 1.7
affine_samplers = pytest.mark.parametrize("sampler", AFFINE)
# One without momenta and one with them; the others' covariances are held to the Lyapunov equation.
two_samplers = pytest.mark.parametrize(
    "sampler",
    [
        name if name in ("sgld", "sgnht") else pytest.param(name, marks=pytest.mark.thorough)
        for name in SAMPLERS
    ],
)
all_targets = pytest.mark.parametrize(
    "target",
    [
        pytest.param("condition 1", marks=pytest.mark.thorough),
        pytest.param("condition 100", marks=pytest.mark.thorough),
        "condition 10^4",
        "correlated, 10-d",
    ],
)


@all_targets
@affine_samplers
def test_the_stationary_covariance_is_that_of_the_lyapunov_equation(
    sampler: str, target: str
) -> None:
    case = Case(AFFINE[sampler], PRECISIONS[target], stiffness=1.0, temperature=TEMPERATURE)
    step = case.affine()
    s2 = 0.5 * case.stiffest * TEMPERATURE
    stationary = step.stationary(s2)
    # From twice the standard deviation; the excess dies out as A says, in slow directions later.
    num_steps = 150
    decay = np.linalg.matrix_power(step.A, num_steps)
    expected = stationary + 3 * decay @ stationary @ decay.T
    start = case.split(normal_draws(4 * stationary, 5_000, seed=1))
    found = case.join(case.simulate(start, num_steps, s2))
    assert np.abs(covariance_scores(found, expected)).max() < 4.5
    # Sharp enough: the excess of temperature, 12 % and more, would be seen if it were not expected.
    without_noise = step.stationary() + 3 * decay @ step.stationary() @ decay.T
    assert np.abs(covariance_scores(found, without_noise)).max() > 4.5


@all_targets
@affine_samplers
def test_small_steps_reach_the_target(sampler: str, target: str) -> None:
    errors = [
        case.relative_error(case.affine().stationary())
        for stiffness in (0.02, 0.01)
        for case in [Case(AFFINE[sampler], PRECISIONS[target], stiffness, TEMPERATURE)]
    ]
    assert errors[0] < 0.01
    assert errors[1] < 0.51 * errors[0] or max(errors) < 1e-6  # BAOAB: exact at every step


@two_samplers
def test_started_in_its_own_law_it_stays(sampler: str) -> None:
    whitened, in_the_target = [], []
    for seed, precision in enumerate(PRECISIONS.values()):
        if sampler == "sgnht":
            # No closed law of the discretised chain; at small steps that of vanishing ones serves.
            case = Case(SGNHT, precision, stiffness=0.05, temperature=TEMPERATURE)
            state, covariance = thermostat_law(case, 5_000, seed), case.target()
        else:
            case = Case(AFFINE[sampler], precision, stiffness=1.0, temperature=TEMPERATURE)
            covariance = case.affine().stationary()
            state = case.split(normal_draws(covariance, 5_000, seed))
        found = case.join(case.simulate(state, 150, seed=seed)).numpy()[:, : len(covariance)]
        whitened.append(np.linalg.solve(np.linalg.cholesky(covariance), found.T).ravel())
        position = found[:, : len(precision)].T
        in_the_target.append(np.linalg.solve(np.linalg.cholesky(case.target()), position).ravel())
    assert kstest(np.concatenate(whitened), "norm").pvalue > 1e-6
    if sampler == "sgld":  # sharp enough: the target is not the law of this step, and it shows
        assert kstest(np.concatenate(in_the_target), "norm").pvalue < 1e-6


@all_targets
def test_the_thermostat_holds_the_target(target: str) -> None:
    case = Case(SGNHT, PRECISIONS[target], stiffness=0.05, temperature=TEMPERATURE)
    with pytest.raises(ValueError, match="not an affine map"):
        case.affine()
    state = case.simulate(thermostat_law(case, 10_000, seed=3), 200)
    assert np.abs(covariance_scores(state.position, case.target())).max() < 4.5


def energy(case: Case, s2: float) -> tuple[float, float]:
    """E[wᵀPw]/(DT), which is T_eff/T, with its standard error, over times and chains."""
    state = case.simulate(thermostat_law(case, 2_000, seed=4), 300, s2, seed=5)
    totals = torch.zeros(2_000, dtype=torch.float64)
    for block in range(100):
        state = case.simulate(state, 5, s2, seed=6 + block)
        totals += ((state.position @ case.precision) * state.position).mean(-1)
    means = totals / (100 * case.temperature)
    return means.mean().item(), means.std().item() / math.sqrt(len(means))


def test_the_thermostat_absorbs_gradient_noise() -> None:
    case = Case(SGNHT, PRECISIONS["condition 1"], stiffness=0.05, temperature=TEMPERATURE)
    exact, error = energy(case, 0.0)
    assert abs(exact - 1) < 0.01
    assert error < 0.0025
    s2 = 2 * TEMPERATURE
    # What BAOAB of the same friction would be off by, and what the bound allows.
    given = columns({"a": 1.0, "s2": s2})
    bound = SGNHT.dynamics.excess_temperature(given["a"], given["s2"], case.settings).item()
    noisy, error = energy(case, s2)
    assert bound > 0.25
    assert abs(noisy - 1) < 0.02
    assert error < 0.004


def beta_binomial(sampler: str, stiffness: float) -> tuple[np.ndarray, np.ndarray]:
    """E[p] and E[(p − mean)²] of 16 successes and 9 failures on the logit scale, with errors.

    Four independent copies, so that PSGLD has a metric to differ in.
    """
    a, b = 16.0, 9.0
    curvature = a * b / (a + b)  # at the mode of the density that its Jacobian makes
    case = Case(SAMPLERS[sampler], curvature * torch.eye(4, dtype=torch.float64), stiffness)
    generator = torch.Generator().manual_seed(8)
    num_chains, burn_in, num_steps = 2_000, 200, 1_000

    def normal() -> torch.Tensor:
        return torch.randn((num_chains, 4), generator=generator, dtype=torch.float64)

    state = case.start(math.log(a / b) + normal() / math.sqrt(curvature), normal())
    moments = torch.zeros(2, num_chains, 4, dtype=torch.float64)
    for step in range(burn_in + num_steps):
        p = state.position.sigmoid()
        if step >= burn_in:
            moments += torch.stack([p, (p - a / (a + b)).square()])
        # log density: a log p + b log(1 − p), the Jacobian p(1 − p) included.
        state = case.sampler.dynamics.step(state, a - (a + b) * p, normal(), case.settings)
    means = moments.mean(-1).numpy() / num_steps
    return means.mean(-1), means.std(-1, ddof=1) / math.sqrt(num_chains)


@two_samplers
def test_a_beta_binomial_extrapolated_from_two_steps(sampler: str) -> None:
    whole, error_of_whole = beta_binomial(sampler, 0.4)
    half, error_of_half = beta_binomial(sampler, 0.2)
    found = 2 * half - whole  # the leading bias is linear in ε
    errors = np.hypot(2 * error_of_half, error_of_whole)
    mean = 16 / 25
    truth = np.array([mean, mean * (1 - mean) / 26])
    assert (np.abs(found / truth - 1) < 0.02).all()
    assert (errors / truth < 0.005).all()
    if sampler == "sgld":  # sharp enough to see what is extrapolated away
        assert z_score(whole[1], truth[1], error_of_whole[1]) > 10


@affine_samplers
@pytest.mark.parametrize("s2", [0.0, 3.0])
@pytest.mark.parametrize("stiffness", [0.05, 1.0])
def test_predicted_excess_and_relaxation(sampler: str, s2: float, stiffness: float) -> None:
    case = Case(AFFINE[sampler], torch.tensor([[2.5]], dtype=torch.float64), stiffness, TEMPERATURE)
    dynamics = case.sampler.dynamics
    step = case.affine()
    # What is predicted is told curvature and noise in the sampler's own metric.
    metric = case.sampler.metric(case.precision.diagonal()).item()
    given = columns({"a": case.stiffest, "s2": s2 * metric})
    excess = dynamics.excess_temperature(given["a"], given["s2"], case.settings).item()
    ratio = step.stationary(s2)[0, 0] * 2.5 / TEMPERATURE
    assert 1 + excess == pytest.approx(ratio, rel=1e-9)
    if stiffness < 0.1:
        radius = np.abs(np.linalg.eigvals(step.A)).max()
        steps = dynamics.relaxation_steps(given["a"], case.settings).item()
        # BAOAB's formula joins its two limits, and is up to twice too long where they meet.
        assert 0.9 < steps * -math.log(radius) < (2.1 if sampler == "baoab" else 1.1)
