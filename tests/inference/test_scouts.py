"""A mode that no chain found by itself gets a chain; where there is one mode nothing changes."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_fe.inference.program.ancestors import prior_positions
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.warmup import newton
from ppl_fe.inference.warmup.newton import Descent, descend
from ppl_fe.inference.warmup.scouts import with_other_modes


def square() -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
    pyro.sample("y", dist.Normal(w.square(), 0.1), obs=torch.ones((), dtype=torch.float64))


def far_apart() -> None:
    """Two bumps that uniform starts on (−2, 2) know one of, and the prior both."""
    bumps = dist.Normal(torch.tensor([0.0, 40.0], dtype=torch.float64), 1.0)
    pyro.sample("w", dist.MixtureSameFamily(dist.Categorical(probs=torch.ones(2) / 2), bumps))


def normal() -> None:
    pyro.sample("w", dist.Normal(torch.full((3,), 5.0), 2.0).to_event(1))


def found_from(density: Density, starts: list[float]) -> Descent:
    size = density.num_parameters
    found = descend(density, torch.tensor(starts, dtype=density.dtype)[:, None].repeat(1, size))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("program", "mode", "other"), [(square, 1.0, -1.0), (far_apart, 0.0, 40.0)]
)
def test_a_chain_is_put_where_no_chain_came(program: object, mode: float, other: float) -> None:
    density = Density(program)  # type: ignore[arg-type]
    found = found_from(density, [0.9, 1.1, 0.8, 1.3])
    assert torch.allclose(found.position, torch.tensor(mode).double(), atol=0.05)
    centers = with_other_modes(density, found, seed=0).position[:, 0]
    assert int((abs(centers - other) < 0.05).sum()) == 1
    assert int((abs(centers - mode) < 0.05).sum()) == 3


@pytest.mark.parametrize(("share", "matters"), [(0.003, True), (1e-5, False)])
def test_a_rare_mode_counts_by_what_it_adds_to_the_variance(share: float, matters: bool) -> None:
    """At 40 standard deviations a share of 0.003 makes the variance about five times as large."""

    def rare() -> None:
        weights = torch.tensor([1 - share, share], dtype=torch.float64)
        bumps = dist.Normal(torch.tensor([0.0, 40.0], dtype=torch.float64), 1.0)
        w = pyro.sample("w", dist.Normal(torch.zeros((), dtype=torch.float64), 100.0))
        pyro.factor("both", torch.logsumexp(weights.log() + bumps.log_prob(w[..., None]), -1))

    density = Density(rare)
    found = found_from(density, [0.5, -0.5, 1.0, -1.0])
    moved = with_other_modes(density, found, seed=0).position
    assert int(((moved - 40).abs() < 0.1).sum()) == matters


def test_a_way_whose_best_point_is_beside_its_mode_has_ended_there() -> None:
    """Two of five heavy-tailed data make a lumpy mode of 0.2 % of the mass at 20 deviations."""
    y = 0.05 * torch.tensor([-1.0, 0.5, -0.7, 24.0, 25.5], dtype=torch.float64)

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=torch.float64), 0.5))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.StudentT(1.0, mu, 0.05), obs=y)

    density = Density(model)
    found = found_from(density, [1.0, 1.1, 1.3, 1.5])
    assert bool(found.at_mode.all()), found


def test_the_mode_of_most_mass_counts_though_chains_know_another() -> None:
    def uneven() -> None:
        weights = torch.tensor([0.05, 0.95], dtype=torch.float64)
        bumps = dist.Normal(torch.tensor([0.0, 40.0], dtype=torch.float64), 1.0)
        pyro.sample("w", dist.MixtureSameFamily(dist.Categorical(probs=weights), bumps))

    density = Density(uneven)
    found = found_from(density, [0.5, -0.5, 1.0, -1.0])
    moved = with_other_modes(density, found, seed=0).position
    assert int(((moved - 40).abs() < 0.1).sum()) == 1


def test_of_one_mode_nothing_changes() -> None:
    density = Density(normal)
    found = found_from(density, [0.5, -1.0])
    assert with_other_modes(density, found, seed=0) is found


def test_positions_are_drawn_from_the_prior_on_unconstrained_space() -> None:
    def program() -> None:
        scale = pyro.sample("scale", dist.LogNormal(3.0, 0.1))
        pyro.sample("w", dist.Normal(scale, 0.1))
        pyro.sample("y", dist.Normal(0.0, 1e3), obs=torch.tensor(1.0))

    state = torch.get_rng_state()
    found = prior_positions(Density(program), 6, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert bool(((found[:, 0] - 3).abs() < 0.6).all())
    assert bool(((found[:, 1] - found[:, 0].exp()).abs() < 0.6).all())


def test_an_improper_prior_gives_no_positions() -> None:
    def program(y: Tensor) -> None:
        w = pyro.sample("w", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(w, 1.0), obs=y)

    assert prior_positions(Density(program, (torch.zeros(()),)), 4, seed=0).shape == (0, 1)
    assert math.isfinite(float(found_from(Density(program, (torch.zeros(()),)), [1.0]).mass))


def three() -> None:
    bumps = dist.Normal(torch.tensor([0.0, 40.0, 80.0], dtype=torch.float64), 1.0)
    pyro.sample("w", dist.MixtureSameFamily(dist.Categorical(probs=torch.ones(3) / 3), bumps))


def test_chains_that_have_a_mode_each_keep_it() -> None:
    density = Density(three)
    found = found_from(density, [0.5, 39.0])
    centers = with_other_modes(density, found, seed=0).position[:, 0]
    assert torch.allclose(centers, torch.tensor([0.0, 40.0]).double(), atol=0.05)


def test_where_there_are_no_second_derivatives_starts_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    density = Density(square)
    found = found_from(density, [0.9, 1.1])

    def once_only(*arguments: object) -> None:
        raise NotImplementedError("a derivative that torch does not know")

    monkeypatch.setattr(newton, "full_data_terms", once_only)
    assert descend(density, torch.zeros(2, 1)) is None
    assert with_other_modes(density, found, seed=0) is found
