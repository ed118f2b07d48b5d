"""Programs that no `vmap` takes: told why, and sampled rightly one chain after another."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from exact import mcse_of_mean, z_score

import ppl_fe as fe
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.program.each_chain import Way
from ppl_fe.inference.step.batchable import batchable

DEPENDS = "its control flow depends on the values of latent sites"
Program = Callable[[], None]


def branching() -> None:
    """N(0, 1) cut in two: where x < 0 it is twice as narrow. Mean and mass are known."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    if x < 0:
        pyro.factor("narrow", -1.5 * x**2)


def by_item() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("narrow", -1.5 * x**2 * float(x.item() < 0))


def plain() -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0))


# p ∝ exp(−x²/2) above zero and exp(−2x²) below: masses as 1 : 1/2, half-normal means √(2/π)σ.
MEAN = np.sqrt(2 / np.pi) * (1 - 0.5 * 0.5) / 1.5


def draws(program: Program, **changed: Any) -> xr.DataTree:
    options: dict[str, Any] = {
        "num_samples": 25,
        "warmup_steps": 5,
        "num_chains": 2,
        "progress_bar": False,
    }
    return fe.sample(fe.SGLD(program, step_size=0.1), **{**options, **changed})


@pytest.mark.parametrize("program", [branching, by_item])
def test_it_says_why_and_the_draws_are_the_sequential_ones(program: Program) -> None:
    with pytest.warns(
        RuntimeWarning,
        match=f"^the model cannot be vectorised over chains: {DEPENDS}. Running chains one after "
        "another, uncompiled; use torch.where .* chain_method='sequential' to silence this$",
    ) as told:
        fallen_back = draws(program)
    assert len(told) == 1
    asked_for = draws(program, chain_method="sequential")  # any warning would be an error
    for group in ("posterior", "sample_stats", "moments"):
        xr.testing.assert_identical(
            fallen_back[group].to_dataset().drop_attrs(), asked_for[group].to_dataset().drop_attrs()
        )
    for tree in (fallen_back, asked_for):
        assert tree.attrs["chain_method"] == "sequential"
        assert tree.attrs["compile"] == "eager"
        assert tree.posterior.attrs["chain_method"] == "sequential"


@pytest.mark.parametrize("method", ["vectorized", "sequential"])
def test_a_plain_program_runs_as_asked_and_says_so(method: str) -> None:
    tree = draws(plain, chain_method=method)
    assert tree.attrs["chain_method"] == method
    assert tree.attrs["compile"] == "traced"


def test_what_vmap_lacks_otherwise_is_quoted_and_the_step_still_traced() -> None:
    def random_inside() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("dither", 0.0 * x * dist.Normal(0.0, 1.0).sample())

    with pytest.warns(RuntimeWarning, match="vectorised over chains: vmap: .*random") as told:
        tree = draws(random_inside)
    assert "uncompiled" not in str(told[0].message)
    assert tree.attrs["chain_method"] == "sequential"
    assert tree.attrs["compile"] == "traced"


POINTS = torch.linspace(0.0, 1.0, 5)


def in_place() -> None:
    """A Gaussian process whose noise is added to the diagonal of a matrix that the data make."""
    noise = pyro.sample("noise", dist.LogNormal(-2.0, 0.5))
    matrix = (-8 * (POINTS[:, None] - POINTS) ** 2).exp()
    matrix.view(-1)[:: len(POINTS) + 1] += noise
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(5), matrix), obs=POINTS.sin())


def out_of_place() -> None:
    noise = pyro.sample("noise", dist.LogNormal(-2.0, 0.5))
    matrix = (-8 * (POINTS[:, None] - POINTS) ** 2).exp() + noise * torch.eye(5)
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(5), matrix), obs=POINTS.sin())


def test_a_matrix_that_is_written_in_place() -> None:
    positions = torch.tensor([[-2.0], [-1.0]])
    with pytest.warns(RuntimeWarning, match="cannot be vectorised"):
        written = batchable(Density(in_place), positions)
    assert written.way.traceable
    plain = Density(out_of_place)
    for one, other in zip(
        written.batched_gradient(written, positions, (), (), ()),
        plain.batched_gradient(plain, positions, (), (), ()),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def stable() -> None:
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    pyro.sample("y", dist.Stable(1.5, 0.0, scale), obs=torch.tensor([0.3, 0.4]))


def wishart() -> None:
    more = pyro.sample("more", dist.LogNormal(0.0, 0.5))
    law = dist.Wishart(3.0 + more, covariance_matrix=torch.eye(2))
    pyro.sample("y", law, obs=torch.eye(2))


@pytest.mark.parametrize(
    ("program", "where"),
    [(stable, "in the log-density of site 'y', Stable"), (wishart, "in the code of Wishart")],
)
def test_a_distribution_s_own_branches_are_named_and_no_if_is_asked_for(
    program: Program, where: str
) -> None:
    """Nobody can replace an `if` that is not in the program."""
    with pytest.warns(
        RuntimeWarning, match=f"{DEPENDS}, {where}. Running chains one after another, uncompiled; p"
    ):
        batchable(Density(program), torch.zeros(2, 1))


def test_errors_of_the_program_itself_are_passed_on() -> None:
    calls = 0

    def failing() -> None:
        nonlocal calls
        calls += 1
        pyro.sample("x", dist.Normal(0.0, 1.0))
        if calls > 5:
            raise RuntimeError("the model's own complaint")

    with pytest.raises(RuntimeError, match="the model's own complaint"):
        draws(failing)


@pytest.mark.thorough
def test_the_law_is_right() -> None:
    """The program branches, and the mean is that of the two halves put together."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        tree = fe.sample(
            fe.BAOAB(branching, step_size=0.15, friction=1.5),
            num_samples=1000,
            warmup_steps=50,
            num_chains=3,
            progress_bar=False,
        )
    x = tree.posterior["x"].values.astype(np.float64)
    assert abs(z_score(float(x.mean()), MEAN, mcse_of_mean(x))) < 4
    above = (x > 0).astype(np.float64)
    assert abs(z_score(float(above.mean()), 2 / 3, mcse_of_mean(above))) < 4
    # As if x were plain N(0, 1), or both halves were narrow, it would be seen.
    assert abs(z_score(0.0, float(x.mean()), mcse_of_mean(x))) > 6


def test_a_program_that_fails_in_every_way_ends_in_its_own_error() -> None:
    def broken() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if float(x) != 0:  # anywhere but at the origin, where it is tried
            raise RuntimeError("the solver gave up")

    with pytest.raises(RuntimeError, match="the solver gave up"):
        batchable(Density(broken), torch.ones(2, 1))
    alone = Density(broken).run_as(Way(vectorized=False))
    with pytest.raises(RuntimeError, match="the solver gave up"):
        alone.outside_steps(alone, torch.ones(2, 1), in_dims=(0,))
