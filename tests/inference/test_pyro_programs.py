"""Programs of the shapes that Pyro's NUTS takes: its own potential, and right or refused by name.

The potential that `initialize_model` makes for HMC is the reference: a second implementation of
transforms, Jacobians and sums. Inside `pyro.infer.MCMC` and `fe.sample` alike.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from cases.pyro_programs import PROGRAMS, TOSSES, X, Y, beta_bernoulli_in_rows
from exact import mcse_of_mean, z_score
from pyro.infer import MCMC
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor

import ppl_fe as fe
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.program.potential import PotentialProgram, potential_arguments

SITES = {"transforms": {"x_base"}, "reparametrised": {"mean", "spread", "effect_decentered"}}


@pytest.fixture(autouse=True)
def no_parameters() -> None:
    pyro.clear_param_store()


@pytest.mark.parametrize("name", PROGRAMS)
def test_density_and_gradient_are_those_of_pyro_s_potential(name: str) -> None:
    model, args = PROGRAMS[name]
    density = Density(model, args)
    start, potential, _, _ = initialize_model(model, model_args=args)
    assert {site.name for site in density.sites} == set(start)
    position = torch.linspace(-0.9, 0.8, 2 * density.num_parameters).reshape(2, -1)
    gradient, terms = density.batched_gradient(density, position, (), (), density.tensors)
    assert terms.log_density.shape == (2,)
    for chain, point in enumerate(position):
        leaf = point.clone().requires_grad_()
        energy = potential(density.split(leaf))
        (slope,) = torch.autograd.grad(energy, leaf)
        # They differ by nothing: both have all normalisers.
        torch.testing.assert_close(
            terms.log_density[chain], -energy.detach(), rtol=1e-4, atol=1e-4, check_dtype=False
        )
        torch.testing.assert_close(gradient[chain], -slope, rtol=1e-3, atol=1e-3)


def test_a_broadcast_under_a_plate_is_still_refused() -> None:
    """A column against means in a row makes N² terms, whichever dimension the plate has."""

    def model(y: Tensor, dim: int) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros(20), 1.0).to_event(1))
        with pyro.plate("data", 20, dim=dim):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    for y, dim in ((Y[:, None], -1), (Y[:, None], -2), (Y, -2)):
        with pytest.raises(ValueError, match="broadcast against each other"):
            Density(model, (y, dim))


@pytest.mark.thorough
def test_terms_of_two_columns_are_kept_a_value_each() -> None:
    kernel = fe.BAOAB(beta_bernoulli_in_rows, step_size=0.1)
    draws = fe.sample(kernel, TOSSES, num_samples=4, warmup_steps=2, progress_bar=False)
    terms = fe.add_log_likelihood(draws, beta_bernoulli_in_rows, TOSSES)
    p = torch.tensor(draws.posterior["p"].values)[:, :, None]
    np.testing.assert_allclose(
        terms.log_likelihood["obs"].values, dist.Bernoulli(p).log_prob(TOSSES), rtol=1e-4
    )


# Discrete sites that NUTS sums over.


def bernoulli_latent(data: Tensor) -> None:
    y_prob = pyro.sample("y_prob", dist.Beta(1.0, 1.0))
    with pyro.plate("data", len(data)):
        y = pyro.sample("y", dist.Bernoulli(y_prob))
        z = pyro.sample("z", dist.Bernoulli(0.65 * y + 0.1))
        pyro.sample("obs", dist.Normal(2.0 * z, 1.0), obs=data)


def one_dimensional(log_density: Tensor, grid: Tensor) -> tuple[float, float]:
    """Mean and standard deviation on a grid."""
    weights = (log_density - log_density.max()).exp()
    weights = weights / weights.sum()
    mean = (weights * grid).sum()
    return mean.item(), (weights * (grid - mean) ** 2).sum().sqrt().item()


def exact_y_prob() -> tuple[float, float]:
    grid = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
    one = 0.75 * grid + 0.1 * (1 - grid)  # P(z = 1)
    data = Y.double()[:, None]
    high, low = (dist.Normal(mean, 1.0).log_prob(data).exp() for mean in (2.0, 0.0))
    return one_dimensional((one * high + (1 - one) * low).log().sum(0), grid)


@pytest.mark.slow
def test_the_potential_of_a_program_with_discrete_sites() -> None:
    """`initialize_model` sums over them, and its potential is a kernel's target."""
    pyro.set_rng_seed(3)
    start, potential, transforms, _ = initialize_model(
        bernoulli_latent, model_args=(Y,), max_plate_nesting=1
    )
    kernel = fe.BAOAB(potential_fn=potential, step_size=0.5)
    mcmc = MCMC(
        kernel, 1500, 200, initial_params=start, transforms=transforms, disable_progbar=True
    )
    mcmc.run()
    y_prob = mcmc.get_samples()["y_prob"].double().numpy()[None]
    mean, sd = exact_y_prob()
    assert abs(y_prob.mean() - mean) < 4.5 * mcse_of_mean(y_prob) + 0.02 * sd


@pytest.mark.thorough
def test_discrete_sites_are_summed_out() -> None:
    draws = fe.sample(bernoulli_latent, Y, progress_bar=False)
    y_prob = draws.posterior["y_prob"].values.astype(np.float64)
    mean, sd = exact_y_prob()
    assert abs(y_prob.mean() - mean) < 4.5 * mcse_of_mean(y_prob)
    squares = ((y_prob - mean) / sd) ** 2
    assert abs(squares.mean() - 1) < 4.5 * mcse_of_mean(squares)


def to_five(z: Any) -> Tensor:
    energy: Tensor = 0.5 * (z["z"] - 5.0).square().sum()
    return energy


@pytest.mark.thorough
def test_a_potential_in_sample_and_in_mcmc() -> None:
    """N(5, 1), as one vector and as a scalar."""
    tree = fe.sample(
        fe.BAOAB(potential_fn=to_five),
        initial_params={"z": torch.zeros(4, 3)},
        num_samples=300,
        warmup_steps=300,
        progress_bar=False,
    )
    z = tree.posterior["z"].values.astype(np.float64)
    assert z.shape == (4, 300, 3)
    for k in range(3):
        assert abs(z_score(float(z[..., k].mean()), 5.0, mcse_of_mean(z[..., k]))) < 4.5
    pyro.set_rng_seed(0)
    kernel = fe.BAOAB(None, potential_fn=to_five)
    mcmc = MCMC(kernel, 500, 200, initial_params={"z": torch.tensor(0.0)}, disable_progbar=True)
    mcmc.run()
    drawn = mcmc.get_samples()["z"].double().numpy()[None]
    assert abs(z_score(float(drawn.mean()), 5.0, mcse_of_mean(drawn))) < 4.5
    assert "to_five" in repr(kernel)


def test_a_potential_needs_starts_and_nothing_else() -> None:
    kernel = fe.BAOAB(potential_fn=to_five)
    with pytest.raises(ValueError, match="potential_fn needs initial_params"):
        fe.sample(kernel, progress_bar=False)
    with pytest.raises(ValueError, match="potential_fn needs initial_params"):
        MCMC(kernel, 5, 5, disable_progbar=True).run()
    with pytest.raises(TypeError, match="no further arguments"):
        fe.sample(kernel, Y, initial_params={"z": torch.zeros(4)}, progress_bar=False)
    with pytest.raises(TypeError, match="takes a Pyro program, or potential_fn="):
        fe.SGLD()
    with pytest.raises(TypeError, match="takes a Pyro program, or potential_fn="):
        fe.SGLD(gaussian, potential_fn=to_five)


def gaussian() -> None:
    pyro.sample("w", dist.Normal(0.0, 1.0))


# Closed forms of the posterior mean and standard deviation, program -> site -> values.


def beta_moments(tosses: Tensor) -> tuple[Tensor, Tensor]:
    heads = tosses.sum(0)
    a, b = 1.1 + heads, 1.1 + len(tosses) - heads
    return a / (a + b), (a * b / ((a + b) ** 2 * (a + b + 1))).sqrt()


def gamma_normal_moments() -> tuple[Tensor, Tensor]:
    grid = torch.linspace(0.002, 8, 8000, dtype=torch.float64)
    found = [
        one_dimensional(-grid + dist.Normal(3.0, grid).log_prob(3 + c[:, None]).sum(0), grid)
        for c in X.double().T
    ]
    means, sds = zip(*found, strict=True)
    return torch.tensor(means), torch.tensor(sds)


def chain_moments() -> dict[str, tuple[Tensor, Tensor]]:
    """Three steps of a walk, the last seen twenty times."""
    precision = torch.tensor([[2.0, -1, 0], [-1, 2, -1], [0, -1, 1 + len(X)]]).double()
    covariance = precision.inverse()
    means = covariance[:, 2:] * X.double().sum(0)
    sds = covariance.diagonal().sqrt()
    return {f"loc_{i}": (means[i], sds[i].expand(2)) for i in range(3)}


def normal_normal_moments() -> tuple[Tensor, Tensor]:
    return torch.ones(3), torch.full((3,), math.sqrt(0.5))


EXACT: dict[str, dict[str, tuple[Tensor, Tensor]]] = {
    "gaussian chain": chain_moments(),
    "beta-bernoulli": {"p": beta_moments(TOSSES)},
    "beta-bernoulli, dim=-2": {"p": beta_moments(TOSSES)},
    "beta-bernoulli, two plates": {"p": beta_moments(TOSSES)},
    "gamma-normal": {"scale": gamma_normal_moments()},
    "normal-normal": {"y": normal_normal_moments()},
    "dirichlet-categorical": {
        "p": (torch.tensor([2.0, 4.0, 2.0]) / 8, (torch.tensor([12.0, 16.0, 12.0]) / 576).sqrt())
    },
    "columns under a plate of rows": {
        "z": (torch.tensor([0.5, 0.8]).expand(3, 2), torch.tensor([0.5, 0.8]).sqrt().expand(3, 2))
    },
}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "inside"),
    [
        *((name, "fe.sample") for name in EXACT),
        ("gamma-normal", "MCMC"),
        *(
            pytest.param(name, "MCMC", marks=pytest.mark.slow)
            for name in ("beta-bernoulli, dim=-2", "gaussian chain")
        ),
    ],
)
def test_the_posterior_is_right(name: str, inside: str) -> None:
    model, args = PROGRAMS[name]
    if inside == "MCMC":
        pyro.set_rng_seed(1)
        mcmc = MCMC(fe.BAOAB(model), 4000, 500, disable_progbar=True)
        mcmc.run(*args)
        drawn = {site: mcmc.get_samples()[site][None].double().numpy() for site in EXACT[name]}
    else:
        tree = fe.sample(
            fe.BAOAB(model), *args, num_samples=1000, thinning=2, num_chains=8, progress_bar=False
        )
        drawn = {site: tree.posterior[site].values.astype(np.float64) for site in EXACT[name]}
    for site, (means, sds) in EXACT[name].items():
        values = drawn[site].reshape(*drawn[site].shape[:2], -1)
        for k, (mean, sd) in enumerate(zip(means.flatten(), sds.flatten(), strict=True)):
            one = values[..., k]
            # The step's bias of a twentieth of the variance comes on top of the noise.
            assert abs(one.mean() - mean.item()) < 4.5 * mcse_of_mean(one) + 0.03 * sd.item()
            squares = ((one - mean.item()) / sd.item()) ** 2
            assert abs(squares.mean() - 1) < 4.5 * mcse_of_mean(squares) + 0.06


@pytest.mark.parametrize(
    "name",
    [  # those whose posterior is looked at above run by hand
        pytest.param(name, marks=pytest.mark.slow if name in EXACT else pytest.mark.thorough)
        for name in PROGRAMS
    ],
)
def test_every_program_runs_in_both(name: str) -> None:
    model, args = PROGRAMS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of short warm-ups
        tree = fe.sample(
            fe.BAOAB(model), *args, num_samples=10, warmup_steps=20, progress_bar=False
        )
        mcmc = MCMC(fe.BAOAB(model), 10, 20, disable_progbar=True)
        mcmc.run(*args)
    for site, values in mcmc.get_samples().items():
        assert np.isfinite(tree.posterior[site].values).all()
        assert tree.posterior[site].shape[2:] == tuple(values.shape[1:])


def test_the_chain_of_pyro_s_runner_goes_where_it_is_put() -> None:
    kernel = fe.SGLD(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), step_size=0.1)
    assert kernel.initial_params == {}
    with pytest.raises(RuntimeError, match=r"call setup\(\) first, or run the kernel through MCMC"):
        kernel.sample({"x": torch.tensor(0.0)})
    kernel.setup(0)
    moved = kernel.sample({"x": torch.tensor(1000.0)})["x"]
    # w + (step/2) (-w) and noise of sd 0.32
    assert abs(float(moved) - 950.0) < 3
    with pytest.raises(
        fe.DivergedError, match=r"became non-finite at step size 0\.1; use a smaller"
    ):
        kernel.sample({"x": torch.tensor(torch.inf)})


def test_a_potential_takes_the_shapes_of_its_start() -> None:
    def potential(z: Any) -> Tensor:
        energy: Tensor = z["x"].square().sum() / 2 + z["s"]
        return energy

    start = {"x": torch.zeros(3), "s": torch.tensor(0.5)}
    density = Density(PotentialProgram(potential), potential_arguments((), start))
    assert {site.name: site.shape for site in density.sites} == {"x": (3,), "s": ()}
    at = density.join({"x": torch.tensor([[1.0, 2.0, 0.0]]), "s": torch.tensor([0.25])})[0]
    assert float(density(at).log_density) == pytest.approx(-2.75)
    with pytest.raises(TypeError, match="takes the sites' values alone"):
        potential_arguments((1,), start)
    with pytest.raises(ValueError, match="potential_fn needs initial_params"):
        potential_arguments((), None)
