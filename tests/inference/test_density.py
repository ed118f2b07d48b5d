"""The log-density of constrained sites, with its Jacobian, against formulas written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.distributions.transforms import OrderedTransform
from torch import Tensor
from torch.nn.functional import logsigmoid

from ppl_fe.inference.density import Density

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


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_log_density_and_gradient(case: str, vectorized: bool) -> None:
    model, by_hand, size = CASES[case]
    density = Density(model, vectorized=vectorized)
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
