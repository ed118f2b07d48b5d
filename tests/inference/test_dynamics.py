"""One step of each sampler on a quadratic, against the affine map it should be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from exact import affine_stationary_covariance, baoab_affine, stationary_variance
from torch import Tensor

from ppl_fe.inference.dynamics import Measured, baoab, sgld

CURVATURES = [0.3, 5.0]
STEPS = [0.01, 0.6]


def column(value: float) -> Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


def settings(**values: float) -> dict[str, Tensor]:
    return {name: column(value) for name, value in values.items()}


def sgld_affine(a: float, step_size: float, temperature: float, s2: float) -> tuple[float, float]:
    return 1 - step_size * a / 2, step_size * temperature + step_size**2 * s2 / 4


@pytest.mark.parametrize("a", CURVATURES)
@pytest.mark.parametrize("step_size", STEPS)
def test_one_sgld_step(a: float, step_size: float) -> None:
    temperature, s = 1.7, 2.5
    given = settings(step_size=step_size, temperature=temperature)

    def step(x: float, noise: float, kick: float) -> float:
        state = sgld.State(column(x))
        return sgld.step(state, -a * column(x) + s * kick, column(noise), given).position.item()

    transition, variance = sgld_affine(a, step_size, temperature, s**2)
    assert step(1.3, 0.0, 0.0) == pytest.approx(1.3 * transition, rel=1e-12)
    assert step(0.0, 1.0, 0.0) ** 2 + step(0.0, 0.0, 1.0) ** 2 == pytest.approx(variance, rel=1e-12)
    assert step(0.0, 1.0, 0.0) == pytest.approx(math.sqrt(step_size * temperature), rel=1e-12)


@pytest.mark.parametrize("a", CURVATURES)
@pytest.mark.parametrize("step_size", STEPS)
@pytest.mark.parametrize("friction", [0.2, 3.0])
def test_one_baoab_step(a: float, step_size: float, friction: float) -> None:
    temperature, s = 1.7, 2.5
    given = settings(step_size=step_size, temperature=temperature, friction=friction)

    def step(x: float, p: float, noise: float, kick: float) -> np.ndarray:
        state = baoab.State(column(x), column(p))
        new = baoab.step(state, -a * column(x) + s * kick, column(noise), given)
        return np.array([new.position.item(), new.momentum.item()])

    A, Q = baoab_affine(a, step_size, friction, temperature, s**2)
    np.testing.assert_allclose(step(1.3, 0.0, 0.0, 0.0), 1.3 * A[:, 0], rtol=1e-12)
    np.testing.assert_allclose(step(0.0, -0.8, 0.0, 0.0), -0.8 * A[:, 1], rtol=1e-12)
    thermal, kick = step(0.0, 0.0, 1.0, 0.0), step(0.0, 0.0, 0.0, 1.0)
    np.testing.assert_allclose(np.outer(thermal, thermal) + np.outer(kick, kick), Q, rtol=1e-12)


def test_baoab_at_infinite_friction_is_sgld_with_averaged_noise() -> None:
    step_size, temperature = 0.3, 1.4
    given = settings(step_size=step_size, temperature=temperature, friction=1e6)
    x, gradient, noise = column(0.7), column(-2.1), [column(0.9), column(-1.6)]
    state = baoab.init(x, noise[0], given)  # the momentum left by the noise of a step before
    moved = baoab.step(state, gradient, noise[1], given).position
    averaged = 0.5 * (noise[0] + noise[1])
    same = sgld.step(sgld.State(x), gradient, averaged, given).position
    torch.testing.assert_close(moved, same, rtol=1e-12, atol=0.0)


def test_without_noise_and_gradient_nothing_moves() -> None:
    given = settings(step_size=0.3, temperature=1.0, friction=0.5)
    zero = column(0.0)
    assert sgld.step(sgld.init(column(2.0), zero, given), zero, zero, given).position == 2.0
    assert baoab.step(baoab.init(column(2.0), zero, given), zero, zero, given).position == 2.0


def test_every_chain_has_its_own_settings() -> None:
    given = {
        "step_size": torch.tensor([[0.1], [0.4]]),
        "temperature": torch.ones(2, 1),
        "friction": torch.tensor([[0.5], [2.0]]),
    }
    position, gradient, noise = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0))
    for dynamics in (sgld, baoab):
        together = dynamics.step(dynamics.init(position, noise, given), gradient, noise, given)
        for c in range(2):
            own = {name: value[c : c + 1] for name, value in given.items()}
            cut = slice(c, c + 1)
            start = dynamics.init(position[cut], noise[cut], own)
            alone = dynamics.step(start, gradient[cut], noise[cut], own)
            torch.testing.assert_close(together.position[cut], alone.position)


@pytest.mark.parametrize("a", CURVATURES)
@pytest.mark.parametrize("step_size", STEPS)
@pytest.mark.parametrize("s2", [0.0, 7.0])
@pytest.mark.parametrize("friction", [0.2, 3.0])
def test_excess_temperature_is_that_of_the_stationary_law(
    a: float, step_size: float, s2: float, friction: float
) -> None:
    temperature = 1.7
    given = settings(step_size=step_size, temperature=temperature, friction=friction)
    variance = stationary_variance(0.0, 0.0, a, step_size, s2, temperature)
    predicted = sgld.excess_temperature(column(a), column(s2), given).item()
    assert 1 + predicted == pytest.approx(float(variance) * a / temperature, rel=1e-9)
    covariance = affine_stationary_covariance(
        *baoab_affine(a, step_size, friction, temperature, s2)
    )
    predicted = baoab.excess_temperature(column(a), column(s2), given).item()
    assert 1 + predicted == pytest.approx(covariance[0, 0] * a / temperature, rel=1e-9)


def test_an_unstable_step_has_infinite_excess() -> None:
    given = settings(step_size=0.5, temperature=1.0, friction=1.0)
    for dynamics in (sgld, baoab):
        assert dynamics.excess_temperature(column(8.0), column(0.0), given) == math.inf
        assert dynamics.excess_temperature(column(9.0), column(1.0), given) == math.inf


@pytest.mark.parametrize("tolerance", [0.01, 0.5])
@pytest.mark.parametrize("temperature", [0.5, 3.0])
@pytest.mark.parametrize("stiffest", [1e-3, 1.0, 1e6])
def test_tuned_settings_keep_the_tolerance(
    stiffest: float, temperature: float, tolerance: float
) -> None:
    for noise in (0.0, 1e-3 * stiffest, 30.0 * stiffest, 1e5 * stiffest):
        for slowest in (stiffest, 1e-4 * stiffest):
            arguments = (column(stiffest), column(slowest), column(noise), column(temperature))
            for dynamics in (sgld, baoab):
                tuned = dynamics.tune(Measured(*arguments), tolerance)
                given = {**tuned, "temperature": column(temperature)}
                excess = dynamics.excess_temperature(column(stiffest), column(noise), given).item()
                assert excess <= tolerance * (1 + 1e-9)
                if dynamics is sgld:  # nothing is given away
                    assert excess == pytest.approx(tolerance, rel=1e-9)
                else:
                    assert tuned["friction"] >= 2 * math.sqrt(slowest) * (1 - 1e-12)
                    assert tuned["step_size"] * stiffest <= baoab.STIFFNESS * (1 + 1e-12)
                    assert torch.isfinite(tuned["friction"]).all()


def test_relaxation_steps_are_those_of_the_slowest_eigenvalue() -> None:
    a, step_size = 0.04, 0.01
    found = sgld.relaxation_steps(column(a), settings(step_size=step_size)).item()
    assert found == pytest.approx(-1 / math.log(sgld_affine(a, step_size, 1.0, 0.0)[0]), rel=1e-3)
    # Momenta are the slower below critical friction, positions far above it.
    for friction in (0.02, 0.2, 20.0, 500.0):
        A, _ = baoab_affine(a, step_size, friction)
        radius = float(np.abs(np.linalg.eigvals(A)).max())
        given = settings(step_size=step_size, friction=friction)
        found = baoab.relaxation_steps(column(a), given).item()
        assert found == pytest.approx(-1 / math.log(radius), rel=1e-3)
