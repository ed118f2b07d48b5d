"""The family as kernels: what they refuse, what freezes when warm-up ends, temperature zero."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_fe as fe
from ppl_fe.inference.dynamics import Measured, Preconditioned, baoab, psgld, sghmc, sgld, sgnht
from ppl_fe.inference.step.chains import Chains

SD = torch.tensor([0.2, 1.0, 3.0])


def model() -> None:
    pyro.sample("w", dist.Normal(torch.tensor([1.0, 2.0, 3.0]), SD).to_event(1))


def minibatches() -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(3), SD).to_event(1))
    y = torch.linspace(-1.0, 1.0, 30)
    with pyro.plate("data", 30, subsample_size=5):
        pyro.sample("y", dist.Normal((w / SD).sum(), 1.0), obs=pyro.subsample(y, event_dim=0))


def draws(kernel: fe.Kernel, **changed: Any) -> np.ndarray:
    arguments: dict[str, Any] = {"num_samples": 50, "warmup_steps": 60, "progress_bar": False}
    values: np.ndarray = fe.sample(kernel, **{**arguments, **changed}).posterior["w"].values
    return values


FAMILY = [fe.SGLD, fe.PSGLD, fe.SGHMC, fe.SGNHT, fe.BAOAB]


@pytest.mark.filterwarnings("ignore:warmup_steps=:RuntimeWarning")
@pytest.mark.parametrize(
    "kernel",
    [  # the others' are in test_compile.py
        fe.SGNHT,
        *(
            pytest.param(k, marks=pytest.mark.thorough)
            for k in (fe.PSGLD, fe.SGHMC, fe.SGLD, fe.BAOAB)
        ),
    ],
)
def test_a_traced_step_is_an_eager_one(kernel: type[fe.Kernel]) -> None:
    quick = {"num_samples": 10, "warmup_steps": 12}
    traced, eager = (
        draws(kernel(minibatches), compile=mode, **quick) for mode in ("traced", "eager")
    )
    np.testing.assert_allclose(traced, eager, rtol=2e-3, atol=2e-3)
    assert traced.std() > 0.01


COLD: dict[type[fe.Kernel], dict[str, Any]] = {
    fe.SGLD: {},
    fe.PSGLD: {},
    fe.SGHMC: {"friction": 0.2},
    fe.SGNHT: {"friction": 2.0, "coupling": 1.0},
    fe.BAOAB: {"friction": 2.0},
}


# That each equation is then gradient descent is held step by step in test_equivalences.py.
@pytest.mark.thorough
@pytest.mark.parametrize("kernel", FAMILY)
def test_at_temperature_zero_the_chains_find_the_mode(kernel: type[fe.Kernel]) -> None:
    cold = kernel(model, step_size=0.05, temperature=0.0, **COLD[kernel])
    found = draws(cold, warmup_steps=4000, num_samples=1)
    np.testing.assert_allclose(found[:, 0], [[1.0, 2.0, 3.0]] * 4, atol=1e-3)


@pytest.mark.parametrize("kernel", FAMILY)
def test_an_automatic_step_is_refused_at_temperature_zero(kernel: type[fe.Kernel]) -> None:
    with pytest.raises(ValueError, match=r"temperature=0 leaves nothing .*step_size"):
        kernel(model, temperature=0.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fe.SGHMC(model, step_size=0.1, friction=1.2), "friction must be at most 1"),
        (lambda: fe.SGHMC(model, friction=0.2), "step_size='auto' chooses the friction"),
        (lambda: fe.SGHMC(model, step_size=0.1, friction=0.0), "friction must be a positive"),
        (lambda: fe.PSGLD(model, decay=1.0), "decay must be below 1"),
        (lambda: fe.PSGLD(model, damping=0.0), "damping must be a positive"),
        (lambda: fe.SGNHT(model, coupling=-1.0), "coupling must be a positive"),
        (lambda: fe.SGLD(model, step_size=0.1, temperature=-0.1), "temperature must be a positive"),
        (lambda: fe.BAOAB(model, step_size=0.1, temperature=0.0), "automatic friction"),
        (lambda: fe.BAOAB(model, stiffness=0.0), "stiffness must be a positive"),
        (lambda: fe.BAOAB(model, stiffness=4.0), "stiffness must be below 4"),
    ],
)
def test_bad_settings_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_stiffer_step_is_as_much_longer() -> None:
    """εa along the stiffest direction that warm-up has met; the draws say which was asked for."""
    kernel = fe.BAOAB(model, stiffness=1.0)
    how: dict[str, Any] = {"num_samples": 5, "warmup_steps": 300, "num_chains": 1}
    attrs = fe.sample(kernel, **how, progress_bar=False).attrs
    product = np.multiply(attrs["tuned_step_size"], attrs["tuned_stiffest_curvature"])
    np.testing.assert_allclose(product, 1.0, rtol=1e-5)
    assert attrs["stiffness"] == 1.0


@pytest.mark.parametrize("step_size", ["auto", 0.001])
def test_the_metric_is_learnt_in_warm_up_and_frozen_after(step_size: Any) -> None:
    kernel = fe.PSGLD(minibatches, step_size=step_size)
    pyro.set_rng_seed(3)
    kernel.setup(50)
    chains = kernel._chains
    assert isinstance(chains, Chains)
    params, squares = kernel.initial_params, []
    for _ in range(80):
        params = kernel.sample(params)
        squares.append(chains.state.square.clone())
    assert all(not torch.equal(a, b) for a, b in pairwise(squares[:50]))
    assert all(torch.equal(squares[49], later) for later in squares[50:])
    assert float(chains.settings["decay"]) == 1.0
    metric = psgld.metric(chains.state, chains.settings)[0]
    assert metric[2] > metric[0] > 0  # the stiff coordinate moves less


def test_only_psgld_has_a_metric() -> None:
    found = [isinstance(d, Preconditioned) for d in (sgld, psgld, sghmc, sgnht, baoab)]
    assert found == [False, True, False, False, False]


def column(value: float) -> Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


@pytest.mark.parametrize("tolerance", [0.01, 0.5])
@pytest.mark.parametrize("temperature", [0.5, 3.0])
@pytest.mark.parametrize("relative_noise", [0.0, 1e-3, 30.0, 1e5])
@pytest.mark.parametrize("condition", [1.0, 1e4])
@pytest.mark.parametrize("dynamics", [sghmc, sgnht, psgld])
def test_tuned_settings_keep_the_tolerance(
    dynamics: Any, condition: float, relative_noise: float, temperature: float, tolerance: float
) -> None:
    a = 40.0
    arguments = (column(a), column(a / condition), column(relative_noise * a), column(temperature))
    tuned = dynamics.tune(Measured(*arguments), tolerance)
    given = {**tuned, "temperature": column(temperature)}
    excess = dynamics.excess_temperature(column(a), column(relative_noise * a), given).item()
    assert excess <= tolerance * (1 + 1e-9)
    if dynamics is sghmc:  # nothing is given away
        assert excess == pytest.approx(tolerance, rel=1e-9)
        assert 0 < tuned["friction"] <= 1
    if dynamics is sgnht:  # the thermostat is no stiffer than the stiffest direction may be
        frequency = 2 * tuned["coupling"] * temperature * tuned["step_size"]
        assert frequency <= baoab.STIFFNESS * (1 + 1e-12)


@pytest.mark.parametrize("relative_noise", [0.0, 0.5, 1e6])
def test_sghmc_friction_for_a_step_given_by_hand(relative_noise: float) -> None:
    a, step_size = 4.0, 0.02
    arguments = (column(a), column(0.01), column(relative_noise * 2.0), column(2.0))
    tuned = sghmc.tune(Measured(*arguments), 0.05, column(step_size))
    assert tuned["step_size"] == step_size
    friction = tuned["friction"].item()
    assert friction <= 1
    if friction < 1:
        assert step_size * relative_noise / (4 * friction) <= 0.05 * (1 + 1e-12)
        assert friction >= np.sqrt(2 * step_size * 0.01) * (1 - 1e-12)
    else:
        assert relative_noise == 1e6
