"""The log-density of constrained sites, with its Jacobian, against formulas written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.transforms import OrderedTransform
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ppl_fe.inference.program.data_frames import Columns
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.program.each_chain import Way, over_chains
from ppl_fe.inference.program.equal_forms import OutOfPlaceDraws
from ppl_fe.inference.program.explain import called
from ppl_fe.inference.program.full_data import full_data_terms
from ppl_fe.inference.program.program_call import ProgramCall

DOUBLE = torch.float64
Y = torch.tensor([0.3, -1.2, 0.8], dtype=DOUBLE)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=DOUBLE)


def log_normal_pdf(x: Tensor, mean: Tensor | float = 0.0, sd: Tensor | float = 1.0) -> Tensor:
    sd = torch.as_tensor(sd, dtype=DOUBLE)
    return -0.5 * ((x - mean) / sd) ** 2 - sd.log() - 0.5 * math.log(2 * math.pi)


def positive() -> None:
    scale = pyro.sample("scale", dist.Gamma(number(2.0), number(3.0)))
    pyro.sample("y", dist.Normal(number(0.0), scale).expand([3]).to_event(1), obs=Y)


def positive_by_hand(u: Tensor) -> Tensor:
    x = u[0].exp()
    prior = 2 * math.log(3.0) + x.log() - 3 * x - math.lgamma(2.0)
    return prior + log_normal_pdf(Y, 0.0, x).sum() + u[0]


def interval() -> None:
    pyro.sample("p", dist.Beta(number(2.0), number(4.0)))
    pyro.sample("q", dist.Uniform(number(1.0), number(4.0)))


def interval_by_hand(u: Tensor) -> Tensor:
    log_p, log_rest = logsigmoid(u[0]), logsigmoid(-u[0])
    beta = math.lgamma(2.0) + math.lgamma(4.0) - math.lgamma(6.0)
    # Beta's x (1 - x)^3 / B times the Jacobian x (1 - x); the uniform's 1/3 times 3 x (1 - x).
    return 2 * log_p + 4 * log_rest - beta + logsigmoid(u[1]) + logsigmoid(-u[1])


def simplex() -> None:
    pyro.sample("p", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0], dtype=DOUBLE)))


def simplex_by_hand(u: Tensor) -> Tensor:
    # Stick breaking; the Jacobian is triangular, dx_k/du_k = z_k (1 - z_k) * what is left.
    z1, z2 = torch.sigmoid(u[0] - math.log(2.0)), torch.sigmoid(u[1])
    x = torch.stack([z1, z2 * (1 - z1), (1 - z1) * (1 - z2)])
    jacobian = (z1 * (1 - z1) * z2 * (1 - z2) * (1 - z1)).log()
    normaliser = math.lgamma(9.0) - sum(math.lgamma(a) for a in (2.0, 3.0, 4.0))
    return normaliser + x[0].log() + 2 * x[1].log() + 3 * x[2].log() + jacobian


def correlation() -> None:
    factor = pyro.sample("factor", dist.LKJCholesky(2, number(1.5)))
    pyro.sample("y", dist.Normal(factor[1, 0], number(0.5)), obs=number(0.2))


def correlation_by_hand(u: Tensor) -> Tensor:
    # Of the correlation r = tanh u: (1 - r^2)^(eta - 1) / B(1/2, eta).
    r, eta = torch.tanh(u[0]), 1.5
    beta = math.lgamma(0.5) + math.lgamma(eta) - math.lgamma(0.5 + eta)
    return (eta - 1 + 1) * (1 - r**2).log() - beta + log_normal_pdf(number(0.2), r, 0.5)


def ordered() -> None:
    support = constraints.ordered_vector
    x = pyro.sample("x", dist.ImproperUniform(support, torch.Size(), torch.Size([3])))
    pyro.sample("y", dist.Normal(x.to(DOUBLE), number(1.0)).to_event(1), obs=Y)


def ordered_by_hand(u: Tensor) -> Tensor:
    x = torch.stack([u[0], u[0] + u[1].exp(), u[0] + u[1].exp() + u[2].exp()])
    return log_normal_pdf(Y, x).sum() + u[1] + u[2]


def transformed() -> None:
    base = dist.Normal(number(0.0), number(2.0)).expand([3]).to_event(1)
    pyro.sample("x", dist.TransformedDistribution(base, [OrderedTransform()]))


def transformed_by_hand(u: Tensor) -> Tensor:
    return log_normal_pdf(u, 0.0, 2.0).sum()  # the Jacobian undoes the transformed density's


def dependent() -> None:
    top = pyro.sample("top", dist.LogNormal(number(0.0), number(1.0)))
    x = pyro.sample("x", dist.Uniform(number(0.0), top))
    pyro.sample("y", dist.Normal(x, number(1.0)), obs=number(0.4))


def dependent_by_hand(u: Tensor) -> Tensor:
    top = u[0].exp()
    x = top * torch.sigmoid(u[1])
    inside = -top.log() + (top * torch.sigmoid(u[1]) * torch.sigmoid(-u[1])).log()
    return log_normal_pdf(u[0]) + inside + log_normal_pdf(number(0.4), x)


CASES: dict[str, tuple[Callable[[], None], Callable[[Tensor], Tensor], int]] = {
    "positive": (positive, positive_by_hand, 1),
    "interval": (interval, interval_by_hand, 2),
    "simplex": (simplex, simplex_by_hand, 2),
    "correlation": (correlation, correlation_by_hand, 1),
    "ordered": (ordered, ordered_by_hand, 3),
    "transformed": (transformed, transformed_by_hand, 3),
    "dependent": (dependent, dependent_by_hand, 2),
}


@pytest.mark.parametrize("way", [Way(), Way(False), Way(False, False, False)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_log_density_and_gradient(case: str, way: Way) -> None:
    model, by_hand, size = CASES[case]
    density = Density(model).run_as(way)
    assert density.num_parameters == size
    positions = torch.tensor([[0.3, -0.7, 0.9], [-1.1, 0.4, -0.2], [0.0, 0.0, 0.0]], dtype=DOUBLE)[
        :, :size
    ]
    gradient, terms = density.batched_gradient(density, positions, (), (), density.tensors)
    for chain, u in enumerate(positions):
        torch.testing.assert_close(terms.log_density[chain], by_hand(u), check_dtype=False)
        expected = torch.func.grad(by_hand)(u)
        torch.testing.assert_close(gradient[chain], expected, check_dtype=False)


def test_constrained_values_are_those_of_the_program() -> None:
    density = Density(dependent)
    assert not density.is_static
    positions = torch.randn(2, 5, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    values = density.constrain(positions)
    torch.testing.assert_close(values["top"], positions[..., 0].exp())
    torch.testing.assert_close(values["x"], values["top"] * positions[..., 1].sigmoid())


def test_deterministic_sites_are_reported_and_change_nothing() -> None:
    def model(report: bool) -> None:
        scale = pyro.sample("scale", dist.Exponential(1.0))
        if report:
            pyro.deterministic("variance", scale**2)
        pyro.sample("x", dist.Normal(0.0, scale).expand([2]).to_event(1))

    plain, reporting = Density(model, (False,)), Density(model, (True,))
    position = torch.tensor([0.4, 1.0, -0.5])
    torch.testing.assert_close(reporting(position), plain(position))
    assert reporting(position).log_likelihood == 0.0
    positions = position.expand(3, 4, 3)
    values = reporting.constrain(positions)
    assert {name: tuple(value.shape) for name, value in values.items()} == {
        "scale": (3, 4),
        "variance": (3, 4),
        "x": (3, 4, 2),
    }
    torch.testing.assert_close(values["variance"], values["scale"] ** 2)
    one_by_one = Density(model, (True,), vectorized=False).constrain(positions)
    torch.testing.assert_close(values, one_by_one)


def test_so_they_are_where_every_other_site_is_real() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.deterministic("ratio", x.exp(), event_dim=1)

    density = Density(model)
    assert (density.is_static, density.deterministic) == (True, (("ratio", (2,), (2,)),))
    positions = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        density.constrain(positions), {"x": positions, "ratio": positions.exp()}
    )


def test_split_and_join_are_inverse() -> None:
    def model() -> None:
        pyro.sample("a", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
        pyro.sample("p", dist.Dirichlet(torch.ones(4)))
        pyro.sample("s", dist.HalfNormal(1.0))

    density = Density(model)
    positions = torch.randn(5, 10, generator=torch.Generator().manual_seed(1))
    parts = density.split(positions)
    shapes: dict[str, Any] = {name: tuple(part.shape) for name, part in parts.items()}
    assert shapes == {"a": (5, 2, 3), "p": (5, 3), "s": (5,)}
    assert torch.equal(density.join(parts), positions)
    assert torch.equal(density.join(dict(reversed(parts.items()))), positions)
    with pytest.raises(ValueError, match=r"\['a', 'p', 's'\], got \['a'\]"):
        density.join({"a": parts["a"]})
    with pytest.raises(ValueError, match=r"initial_params\['p'\] must have shape"):
        density.join({**parts, "p": torch.zeros(5, 4)})


SEVEN = torch.tensor([0.5, -1.0, 2.0, 0.1, -0.4, 1.3, 0.9])
GRID = torch.arange(15.0).reshape(5, 3).sin()


def normal_log_density(x: Tensor, mean: Tensor | float = 0.0, sd: float = 1.0) -> Tensor:
    mean = torch.as_tensor(mean)
    return -0.5 * ((x - mean) / sd) ** 2 - math.log(sd) - 0.5 * math.log(2 * math.pi)


def subsampling(y: Tensor, explicit: bool, size: int | None) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y), subsample_size=size) as ix:
        batch = y[ix] if explicit else pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Normal(mean, 2.0), obs=batch)


@pytest.mark.parametrize("explicit", [True, False])
def test_a_minibatch_counts_n_over_b_times(explicit: bool) -> None:
    density = Density(subsampling, (SEVEN, explicit, 3))
    assert density.subsamples == (("data", 7, 3),)
    assert density.num_data == 7
    position, subset = torch.tensor([0.3]), torch.tensor([6, 1, 1])  # with replacement
    terms = density(position, (subset,))
    likelihood = 7 / 3 * normal_log_density(SEVEN[subset], 0.3, 2.0).sum()
    torch.testing.assert_close(terms.log_likelihood, likelihood)
    torch.testing.assert_close(terms.log_density, likelihood + normal_log_density(position[0]))


def test_torch_asks_nobody_for_a_bug_report() -> None:
    """It batches some operations by a loop, and says so; any warning were an error here."""

    def clamped(x: Tensor) -> Tensor:
        inner: Tensor = over_chains(torch.exp, x, in_dims=(0,))  # as chunks of the data are
        return inner.clamp_(min=1.0)

    x = torch.linspace(-1.0, 1.0, 6).reshape(2, 3)
    torch.testing.assert_close(over_chains(clamped, x, in_dims=(0,)), x.exp().clamp(min=1.0))


@pytest.mark.parametrize("vectorized", [True, False])
def test_each_chain_sees_its_own_minibatch(vectorized: bool) -> None:
    density = Density(subsampling, (SEVEN, False, 2), vectorized=vectorized)
    positions, subsets = torch.tensor([[0.3], [-0.9]]), torch.tensor([[0, 5], [2, 2]])
    gradient, terms = density.batched_gradient(density, positions, (subsets,), (), density.tensors)
    for chain in range(2):
        m, batch = positions[chain, 0], SEVEN[subsets[chain]]
        torch.testing.assert_close(gradient[chain, 0], -m + 7 / 2 * (batch - m).sum() / 4)
        torch.testing.assert_close(
            terms.log_likelihood[chain], 7 / 2 * normal_log_density(batch, m, 2.0).sum()
        )


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7, None])
@pytest.mark.parametrize("explicit", [True, False])
def test_full_data_is_exact_for_every_batch_size(size: int | None, explicit: bool) -> None:
    density = Density(subsampling, (SEVEN, explicit, size))
    position = torch.tensor([-0.8])
    terms = full_data_terms(density, position, (), density.tensors)
    likelihood = normal_log_density(SEVEN, -0.8, 2.0).sum()
    torch.testing.assert_close(terms.log_likelihood, likelihood)
    torch.testing.assert_close(terms.log_density, likelihood + normal_log_density(position[0]))


def test_full_data_of_another_precision_than_the_prior() -> None:
    # Control: the minibatch alone takes float64 data under a float32 prior.
    density = Density(subsampling, (SEVEN.double(), False, 3))
    position = torch.tensor([-0.8])
    assert density(position).log_likelihood.dtype == torch.float64
    found = full_data_terms(density, position, (), density.tensors).log_likelihood
    torch.testing.assert_close(found, normal_log_density(SEVEN.double(), -0.8, 2.0).sum())


def crossed(y: Tensor, rows: int, columns: int) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with (
        pyro.plate("rows", 5, subsample_size=rows, dim=-2) as i,
        pyro.plate("columns", 3, subsample_size=columns, dim=-1) as j,
    ):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y[i[:, None], j])


def test_nested_plates_multiply_their_scales() -> None:
    density = Density(crossed, (GRID, 2, 2))
    rows, columns = torch.tensor([4, 0]), torch.tensor([1, 2])
    terms = density(torch.tensor([0.7]), (rows, columns))
    expected = 5 / 2 * 3 / 2 * normal_log_density(GRID[rows][:, columns], 0.7).sum()
    torch.testing.assert_close(terms.log_likelihood, expected)


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (5, 2), (3, 1), (2, 3)])
def test_full_data_with_two_subsampled_plates(rows: int, columns: int) -> None:
    density = Density(crossed, (GRID, rows, columns))
    terms = full_data_terms(density, torch.tensor([0.7]), (), density.tensors)
    expected = normal_log_density(GRID, 0.7).sum()
    torch.testing.assert_close(terms.log_likelihood, expected)
    torch.testing.assert_close(terms.log_density, expected + normal_log_density(torch.tensor(0.7)))


def test_two_plates_side_by_side() -> None:
    def model(a: Tensor, b: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        for name, values, size in (("a", a, 2), ("b", b, 3)):
            with pyro.plate(f"{name}_plate", len(values), subsample_size=size):
                batch = pyro.subsample(values, event_dim=0)
                pyro.sample(name, dist.Normal(mean, 1.0), obs=batch)

    density = Density(model, (SEVEN, GRID[:, 0]))
    subsets = (torch.tensor([3, 4]), torch.tensor([0, 2, 2]))
    found = density(torch.tensor([0.2]), subsets).log_likelihood
    expected = 7 / 2 * normal_log_density(SEVEN[subsets[0]], 0.2).sum()
    expected += 5 / 3 * normal_log_density(GRID[subsets[1], 0], 0.2).sum()
    torch.testing.assert_close(found, expected)
    whole = full_data_terms(density, torch.tensor([0.2]), (), density.tensors).log_likelihood
    everything = normal_log_density(torch.cat([SEVEN, GRID[:, 0]]), 0.2).sum()
    torch.testing.assert_close(whole, everything)
    assert density.num_data == 7


def test_latent_sites_inside_a_whole_plate() -> None:
    def model(y: Tensor) -> None:
        with pyro.plate("groups", 3, dim=-1):
            mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
            with pyro.plate("rows", 5, dim=-2):
                pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    density = Density(model, (GRID,))
    position = torch.tensor([0.1, -0.2, 0.3])
    expected = normal_log_density(GRID, position).sum()
    terms = density(position)
    torch.testing.assert_close(terms.log_likelihood, expected)
    torch.testing.assert_close(terms.log_density, expected + normal_log_density(position).sum())


def test_scales_factors_and_masks() -> None:
    kept = torch.tensor([True, False, True, True, False, True, True])

    def model(y: Tensor) -> None:
        with poutine.scale(scale=0.5):
            mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.factor("penalty", -3.0 * mean**2)
        with pyro.plate("data", 7), poutine.scale(scale=0.25), poutine.mask(mask=kept):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        pyro.sample("z", dist.Poisson(mean.exp()), obs=torch.tensor(2.0))

    terms = Density(model, (SEVEN,))(torch.tensor([0.6]))
    m = torch.tensor(0.6)
    poisson = 2 * m - m.exp() - math.log(2.0)
    masked = normal_log_density(SEVEN[kept], m).sum()
    # The weight of the data is the likelihood's; the prior's, and the factor, are not.
    torch.testing.assert_close(terms.log_likelihood, 0.25 * masked + poisson)
    expected = 0.5 * normal_log_density(m) - 3 * m**2 + 0.25 * masked + poisson
    torch.testing.assert_close(terms.log_density, expected)


class Line(PyroModule[nn.Module]):
    """A Bayesian regression written as a module; its weights have names of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](2, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 3.0).expand([1]).to_event(1))

    def forward(self, x: Tensor, y: Tensor) -> Any:
        mean = self.linear(x)[:, 0]
        with pyro.plate("data", len(y)):
            return pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.mark.parametrize("vectorized", [True, False])
def test_a_pyro_module(vectorized: bool) -> None:
    x = GRID[:, :2]
    density = Density(Line(), (x, SEVEN[:5]), vectorized=vectorized)
    assert [site.name for site in density.sites] == ["linear.weight", "linear.bias"]

    def by_hand(u: Tensor) -> Tensor:
        likelihood = normal_log_density(SEVEN[:5], x @ u[:2] + u[2]).sum()
        return likelihood + normal_log_density(u[:2]).sum() + normal_log_density(u[2], 0.0, 3.0)

    positions = torch.tensor([[0.5, -0.2, 0.1], [1.0, 0.0, -2.0]])
    gradient, terms = density.batched_gradient(density, positions, (), (), density.tensors)
    for chain, u in enumerate(positions):
        torch.testing.assert_close(terms.log_density[chain], by_hand(u))
        torch.testing.assert_close(gradient[chain], torch.func.grad(by_hand)(u))


@pytest.mark.parametrize("vectorized", [True, False])
def test_keyword_arguments_that_differ_from_chain_to_chain(vectorized: bool) -> None:
    def model(y: Tensor, *, center: Tensor, beta: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(center, 1.0))
        with pyro.plate("data", 7), poutine.scale(scale=beta):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    own = {"center": torch.tensor([0.0, 5.0]), "beta": torch.tensor([1.0, 0.1])}
    density = Density(model, (SEVEN,), chain_kwargs=own, vectorized=vectorized)
    positions = torch.tensor([[0.4], [0.4]])
    _, terms = density.batched_gradient(
        density, positions, (), density.chain_values, density.tensors
    )
    likelihood = normal_log_density(SEVEN, 0.4).sum()
    prior = normal_log_density(torch.tensor([0.4, 0.4]), own["center"])
    torch.testing.assert_close(terms.log_likelihood, own["beta"] * likelihood)
    torch.testing.assert_close(terms.log_density, prior + own["beta"] * likelihood)


def test_a_plate_without_a_size_takes_that_of_its_data() -> None:
    def unsized(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data"):
            pyro.sample("y", dist.Normal(mean, 2.0), obs=y)

    found, sized = Density(unsized, (SEVEN,)), Density(subsampling, (SEVEN, True, None))
    assert (found.num_data, found.subsamples) == (7, ())
    position = torch.tensor([0.3])
    torch.testing.assert_close(found(position), sized(position))
    with pytest.raises(ValueError, match=r"shape \(7, 7\), its plates have \(1, 7\)"):
        Density(lambda y: unsized_against_a_column(SEVEN, y), (SEVEN[:, None],))


def unsized_against_a_column(x: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data"):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def plated(y: Tensor, size: int, subset: int | None, explicit: bool) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", size, subsample_size=subset) as ix:
        batch = y[ix] if explicit else pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Normal(mean, 1.0), obs=batch)


@pytest.mark.parametrize("discrete", [dist.Geometric(0.5), dist.Poisson(3.0)])
def test_a_discrete_latent_site_is_named(discrete: dist.Distribution) -> None:
    def model() -> None:
        pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("switch", discrete)

    with pytest.raises(ValueError, match="latent site 'switch' is discrete"):
        Density(model)


def test_a_discrete_observed_site_is_fine() -> None:
    def model(y: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        pyro.sample("y", dist.Bernoulli(p).expand([2]).to_event(1), obs=y)

    assert Density(model, (torch.ones(2),)).num_parameters == 1


def test_nothing_to_sample() -> None:
    def model(y: Tensor) -> None:
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    with pytest.raises(ValueError, match="no latent site"):
        Density(model, (torch.tensor(1.0),))


def test_a_latent_site_inside_a_subsampled_plate() -> None:
    def model(y: Tensor, size: int) -> None:
        pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y), subsample_size=size):
            offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(offset, 1.0), obs=pyro.subsample(y, event_dim=0))

    with pytest.raises(ValueError, match="'offset' lies inside the subsampled plate 'rows'"):
        Density(model, (torch.zeros(6), 2))
    assert Density(model, (torch.zeros(6), 6)).num_parameters == 7


@pytest.mark.parametrize("size", [5, 8])
@pytest.mark.parametrize("subset", [3, None])
def test_a_plate_that_disagrees_with_the_data(size: int, subset: int | None) -> None:
    with pytest.raises(ValueError, match=r"failed on a trial run.*"):
        Density(plated, (torch.zeros(7), size, subset, False))


@pytest.mark.parametrize("subset", [3, None])
def test_explicit_indices_beyond_the_end_of_the_data(subset: int | None) -> None:
    with pytest.raises(ValueError, match=r"failed on a trial run.*out of (bounds|range)"):
        Density(plated, (torch.zeros(7), 8, subset, True))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_data_that_are_not_finite(bad: float) -> None:
    def model(x: Tensor, data: dict[str, Tensor]) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(slope * x, 1.0), obs=data["y"])

    y = torch.zeros(4)
    y[1:3] = bad
    with pytest.raises(ValueError, match=r"^data\.y, of shape \(4,\), holds 2 NaN or infinite"):
        Density(model, (torch.ones(4), {"y": y}))


def test_a_model_that_fails_keeps_its_own_message() -> None:
    def model(x: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        pyro.sample("y", dist.Normal(x @ slope, 1.0), obs=torch.tensor(0.0))

    with pytest.raises(ValueError, match=r"trial run with the data given: .*size") as raised:
        Density(model, (torch.ones(2),))
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_data_outside_a_likelihoods_support() -> None:
    def model(y: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Bernoulli(p), obs=y)

    with pytest.raises(ValueError, match="failed on a trial run"):
        Density(model, (torch.tensor([0.0, 2.0]),))


X = torch.linspace(-1.0, 1.0, 12).reshape(6, 2)
TARGET = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.0])
FRAME, COLUMN = pd.DataFrame(X.numpy(), columns=["a", "b"]), pd.Series(TARGET.numpy())
GROUPS = torch.tensor([0, 1, 0, 1, 1, 0])


def regression(x: Any, y: Any) -> None:
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x @ slope, 1.0), obs=y)


def proportional(x: Any, y: Any) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def logistic(x: Any, y: Any) -> None:
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ slope), obs=y)


def grouped(group: Any, y: Any) -> None:
    level = pyro.sample("level", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=level[group]), obs=y)


def in_double_precision(x: Any, y: Any) -> None:
    prior = dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1)
    slope = pyro.sample("slope", prior)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x @ slope, 1.0), obs=y)


DOUBLES = (
    "argument 0 is a tensor of torch.float64, the model's sites are of torch.float32; give "
    "tensor.to(torch.float32), or write the model in torch.float64"
)
LABELS = "argument 1 is a tensor of torch.int64, the model needs floats; give tensor.to(torch.float"


@pytest.mark.filterwarnings("ignore:__array_wrap__")  # of NumPy's own product
@pytest.mark.parametrize(
    ("model", "args", "advice"),
    [
        (regression, (X.double(), TARGET.double()), f"{DOUBLES} ("),
        (in_double_precision, (X, TARGET), "give tensor.to(torch.float64), or write the model in"),
        (logistic, (X, TARGET.long()), f"{LABELS}32) ("),
        (
            logistic,
            (X, TARGET.bool()),
            "argument 1 is a tensor of torch.bool, the model needs floats",
        ),
        (logistic, (X.double(), TARGET.long()), f"{DOUBLES}; {LABELS}32) ("),
        # Integers that choose a group stay what they are.
        (grouped, (GROUPS, TARGET.long()), f": {LABELS}32) ("),
        (grouped, (GROUPS.numpy(), TARGET.long()), f": {LABELS}32) ("),
        (
            regression,
            (FRAME.assign(c="x"), TARGET),
            "tensor of the columns of numbers: torch.tensor(fr",
        ),
    ],
)
def test_arguments_of_the_wrong_kind_are_named(
    model: Callable[..., None], args: tuple[Any, ...], advice: str
) -> None:
    with pytest.raises(ValueError, match="the model failed on a trial run") as raised:
        Density(model, args)
    assert advice in str(raised.value)
    assert "Trace Shapes" not in str(raised.value)
    assert raised.value.__cause__ is not None


ONES = torch.ones(6)


@pytest.mark.filterwarnings("ignore:__array_wrap__")  # of NumPy's own product
@pytest.mark.parametrize(
    ("model", "args", "meant"),
    [
        (regression, (FRAME, COLUMN), (X, TARGET)),
        (regression, (X, COLUMN), (X, TARGET)),
        (regression, (X.double().numpy(), TARGET.numpy()), (X, TARGET)),
        # NumPy multiplies the number that the site is, but no gradient goes through.
        (proportional, (X[:, 0].numpy(), TARGET), (X[:, 0], TARGET)),
        (logistic, (X, TARGET.long().numpy()), (X, TARGET)),
        (regression, (FRAME.assign(b=True), TARGET), (torch.stack([X[:, 0], ONES], -1), TARGET)),
        (in_double_precision, (X.numpy(), COLUMN), (X.double(), TARGET.double())),
    ],
)
def test_arrays_and_frames_are_taken_for_tensors(
    model: Callable[..., None], args: tuple[Any, ...], meant: tuple[Tensor, ...]
) -> None:
    """In the precision of the program's sites, whatever NumPy has."""
    density, wanted = Density(model, args), Density(model, meant)
    assert [tensor.dtype for tensor in density.tensors] == [tensor.dtype for tensor in meant]
    position = torch.linspace(-1, 1, density.num_parameters, dtype=density.dtype)
    assert density(position) == wanted(position)


def test_columns_of_a_frame_are_read_by_name() -> None:
    def model(frame: Any) -> None:
        slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("rows", len(frame), subsample_size=4) as rows:
            mean = frame[["a", "b"]][rows] @ slope + frame.kind[rows]
            pyro.sample("y", dist.Normal(mean, 1.0), obs=frame["y"][rows])

    frame = FRAME.assign(y=COLUMN, kind=GROUPS.numpy(), place="north")
    density = Density(model, (frame,))
    assert {tensor.dtype for tensor in density.tensors} == {torch.float32, torch.int64}
    position, rows = torch.tensor([0.3, -0.2]), torch.tensor([5, 0, 2, 2])
    mean = X[rows] @ position + GROUPS[rows]
    wanted = dist.Normal(mean, 1.0).log_prob(TARGET[rows]).sum() * 6 / 4
    torch.testing.assert_close(density(position, (rows,)).log_likelihood, wanted)
    assert density.program.variables == ["frame.a", "frame.b", "frame.y", "frame.kind"]

    def by_place(frame: Any) -> None:
        level = pyro.sample("level", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(level[frame["place"]], 1.0).to_event(1), obs=frame["y"])

    with pytest.raises(KeyError, match=r"column 'place' holds no numbers; give codes .*'category'"):
        Density(by_place, (frame,))
    assert Density(by_place, (frame.astype({"place": "category"}),)).num_parameters == 2


@pytest.mark.parametrize("columns", [1, 2, 7])
def test_columns_of_whole_numbers_are_floats_where_the_program_needs_floats(columns: int) -> None:
    names = [f"x{k}" for k in range(columns)]

    def model(frame: Any) -> None:
        slope = pyro.sample("slope", dist.Normal(torch.zeros(columns), 1.0).to_event(1))
        level = pyro.sample("level", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("rows", len(frame)):
            logits = frame[names] @ slope + level[frame["group"]]
            pyro.sample("y", dist.Bernoulli(logits=logits), obs=frame["y"])

    x = torch.arange(6 * columns).reshape(6, columns) % 5
    frame = pd.DataFrame(x.numpy(), columns=names)
    frame = frame.assign(group=GROUPS.numpy(), y=TARGET.long().numpy())
    density = Density(model, (frame,))
    position = torch.linspace(-1, 1, columns + 2)
    logits = x.float() @ position[:columns] + position[columns:][GROUPS]
    wanted = dist.Bernoulli(logits=logits).log_prob(TARGET).sum()
    torch.testing.assert_close(density(position).log_likelihood, wanted)


def test_arguments_by_keyword_and_in_mappings_are_taken_and_have_names() -> None:
    def model(data: dict[str, Any], *, response: Any) -> None:
        regression(data["x"], response)

    found = Density(model, ({"x": X.numpy()},), {"response": TARGET.numpy()})
    assert found.program.names == ["argument 0['x']", "argument 'response'"]
    with pytest.raises(ValueError, match=r"^y, of shape \(6,\), holds 3 NaN"):
        Density(regression, (X, COLUMN.where(COLUMN > 0)))


def test_what_a_program_can_use_is_left_to_it() -> None:
    def own(frame: pd.DataFrame, y: Tensor) -> None:
        regression(torch.tensor(frame.to_numpy(), dtype=torch.float32), y)

    assert Density(own, (FRAME, TARGET)).num_parameters == 2
    assert Density(grouped, (GROUPS.numpy(), TARGET)).num_parameters == 2
    assert Density(proportional, (GROUPS, TARGET.long())).dtype == torch.float32
    assert Density(in_double_precision, (X.double(), TARGET.double())).dtype == torch.float64
    assert Density(regression, (X, TARGET.double())).dtype == torch.float32  # the terms are float64


def test_failures_that_are_none_of_the_arguments_keep_their_own_message() -> None:
    def mistaken(x: Any, y: Any) -> None:
        regression(X, y)
        raise TypeError("of the program's own")

    with pytest.raises(TypeError, match=r"^of the program's own$"):
        Density(mistaken, (X.numpy(), TARGET))
    with pytest.raises(ValueError, match=r"data given: [^(]*size") as raised:
        Density(regression, (X[:, :1], TARGET.long()))
    assert "wants floats" not in str(raised.value)


def test_a_column_of_observations_is_refused_where_it_broadcasts() -> None:
    def regression(x: Tensor, y: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y), subsample_size=4) as rows:
            pyro.sample("y", dist.Normal(slope * x[rows], 1.0), obs=y[rows])

    x, y = torch.linspace(-1, 1, 10), torch.linspace(0, 1, 10)
    assert Density(regression, (x, y)).num_data == 10
    with pytest.raises(ValueError, match=r"'y' has log-densities of shape \(4, 4\), .* \(4,\)"):
        Density(regression, (x, y[:, None]))


def test_other_shapes_in_plates_are_taken() -> None:
    def nested(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("columns", 3, dim=-1), pyro.plate("rows", len(y), dim=-2):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        with pyro.plate("vectors", len(y)):
            pyro.sample("z", dist.Normal(mean, 1.0).expand([3]).to_event(1), obs=y)
        pyro.sample("alone", dist.Normal(mean, 1.0), obs=y)  # without plates: Pyro takes it

    assert Density(nested, (torch.zeros(5, 3),)).num_data == 5


def test_columns_of_a_frame_are_found_by_name() -> None:
    frame = Columns({"age": torch.ones(3), "dose": torch.arange(3.0)}, ["name"])
    assert "age" in frame
    assert "name" not in frame
    assert frame.get("does") is None
    assert frame.get("dose") is frame["dose"]
    assert frame[["age", "dose"]].tolist() == [[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]
    with pytest.raises(KeyError, match="there is no column 'does'; did you mean 'dose'"):
        frame["does"]
    with pytest.raises(KeyError, match="column 'name' holds no numbers; give codes"):
        frame["name"]
    with pytest.raises(AttributeError, match="no attribute 'does'"):
        frame.does  # noqa: B018


def by_group(frame: Any) -> None:
    level = pyro.sample("level", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("rows", len(frame)):
        law = dist.Normal(level[frame["place"]] + frame["a"], 1.0)
        pyro.sample("y", law, obs=frame.get("y"))


PLACES = FRAME.assign(y=COLUMN, place=pd.Categorical(["b", "a", "b", "c", "a", "a"]))


def test_a_category_is_read_as_its_codes_in_new_data_too() -> None:
    """Of some of the rows it has the codes of all; numbers keep their values, text is refused."""
    codes = PLACES["place"].cat.codes
    position = torch.tensor([0.3, -0.2, 1.0])
    wanted = Density(by_group, (PLACES.assign(place=codes),))(position)
    assert Density(by_group, (PLACES,))(position) == wanted
    few = PLACES.iloc[3:5]
    assert called(by_group, (few,), {}).arguments[0][0]["place"].tolist() == [2, 0]
    years = PLACES.assign(a=pd.Categorical([2010, 2011, 2010, 2011, 2010, 2010]))
    assert called(by_group, (years,), {}).arguments[0][0]["a"].tolist()[:2] == [2010, 2011]


@pytest.mark.parametrize(
    ("frame", "error", "message"),
    [
        (PLACES.drop(columns="a"), KeyError, "there is no column 'a'; there are b, y, place"),
        (PLACES.rename(columns={"a": "as"}), KeyError, "there is no column 'a'; did you mean 'as'"),
        (PLACES.astype({"place": "str"}), KeyError, "column 'place' holds no numbers"),
        (PLACES.assign(a=[1, 2, float("nan"), 4, 5, 6]), ValueError, r"^frame\.a, .* holds 1 NaN"),
        (PLACES.assign(y=None), ValueError, r"^frame\.y, .* holds 6 NaN"),
        (PLACES.assign(place=PLACES["place"].where(PLACES["a"] > 0)), ValueError, "frame.place"),
    ],
)
def test_what_is_wrong_with_a_column_is_said_of_the_column(
    frame: pd.DataFrame, error: type[Exception], message: str
) -> None:
    """Of frames of numbers alone, too, which a program that fails once might take as a matrix."""
    with pytest.raises(error, match=message):
        Density(by_group, (frame,))


def test_an_error_of_a_program_that_reads_columns_is_the_program_s() -> None:
    def counts(frame: Any) -> None:
        rate = pyro.sample("rate", dist.Exponential(1.0))
        with pyro.plate("rows", len(frame)):
            pyro.sample("y", dist.Poisson(rate), obs=frame["a"])

    for frame in (FRAME - 10, (FRAME - 10).assign(place="north")):
        with pytest.raises(ValueError, match="be within the support") as raised:
            Density(counts, (frame,))
        assert "more than numbers" not in str(raised.value)


def test_a_plate_and_a_site_of_one_name_are_said_to_be() -> None:
    def twice(y: Tensor) -> None:
        with pyro.plate("place", 2):
            pyro.sample("place", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"a plate and a site, .* own: Multiple .* named 'place'"):
        Density(twice, (TARGET,))


def test_a_program_without_a_signature_is_called_by_place() -> None:
    call = ProgramCall(max, (torch.tensor(1.0), torch.tensor(2.0)), {"key": None})
    assert call.variables == ["argument.0", "argument.1"]
    assert float(call(call.tensors, {})) == 2.0


@pytest.mark.parametrize(
    ("law", "name"),
    [(dist.Uniform(2.0, 3.0), "uniform_"), (dist.Cauchy(1.0, 2.0), "cauchy_")],
)
def test_draws_into_new_tensors_have_the_law_of_those_written(law: Any, name: str) -> None:
    settings = {"uniform_": (2.0, 3.0), "cauchy_": (1.0, 2.0)}[name]
    held = torch.zeros(20_000)
    torch.manual_seed(0)
    with OutOfPlaceDraws():
        drawn = getattr(held, name)(*settings)
    assert (held == 0).all()  # nothing was written
    shares = law.cdf(drawn)  # uniform where the law is right: means and spreads by 5 errors
    assert abs(float(shares.mean()) - 0.5) < 5 * (1 / 12 / 20_000) ** 0.5
    assert abs(float(shares.square().mean()) - 1 / 3) < 5 * (4 / 45 / 20_000) ** 0.5
