"""Latent sites by their support: mixtures take that of their components, others say what to do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.distributions
from exact import mcse_of_mean, z_score
from torch import Tensor
from torch.distributions import constraints

import ppl_fe as fe
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.program.site_checks import transform_of

HALVES = dist.Categorical(torch.tensor([0.5, 0.5]))
Make = Callable[[], object]


def program(make: Make) -> Callable[[], None]:
    def model() -> None:
        pyro.sample("z", make())

    return model


def normals() -> object:
    return dist.MixtureSameFamily(HALVES, dist.Normal(torch.tensor([-1.0, 1.0]), 0.5))


def gammas() -> object:
    return dist.MixtureSameFamily(HALVES, dist.Gamma(torch.tensor([1.0, 4.0]), 1.0))


def vectors() -> object:
    return normals_of(3).to_event(1)


def normals_of(size: int) -> dist.MixtureSameFamily:
    parts = dist.Normal(torch.tensor([-1.0, 1.0]), 0.5).expand([size, 2])
    return dist.MixtureSameFamily(HALVES.expand([size]), parts)


def dirichlets() -> object:
    return dist.MixtureSameFamily(HALVES, dist.Dirichlet(torch.tensor([[1.0, 1, 1], [2, 2, 2]])))


@pytest.mark.parametrize(
    ("make", "free", "shape", "support"),
    [
        (normals, (), (), constraints.real),
        (gammas, (), (), constraints.positive),
        (vectors, (3,), (3,), constraints.real_vector),
        (dirichlets, (2,), (3,), constraints.simplex),
    ],
)
def test_a_mixture_lives_where_its_components_do(
    make: Make, free: tuple[int, ...], shape: tuple[int, ...], support: constraints.Constraint
) -> None:
    (site,) = Density(program(make)).sites
    assert (site.shape, site.support_shape) == (free, shape)
    value = transform_of("z", make())(torch.full(free, 0.3))
    assert bool(support.check(value))  # type: ignore[no-untyped-call]
    assert bool(torch.isfinite(make().log_prob(value)))  # type: ignore[attr-defined]


def test_the_log_density_of_a_mixture_has_its_jacobian() -> None:
    def log_density(u: Tensor) -> Tensor:
        parts = torch.stack([dist.Gamma(a, 1.0).log_prob(u.exp()) for a in (1.0, 4.0)])
        return torch.logsumexp(parts, 0) - float(np.log(2.0))

    u = torch.tensor(0.7)
    found = Density(program(gammas))(u[None]).log_density
    torch.testing.assert_close(found, log_density(u) + u)


def test_draws_of_a_mixture() -> None:
    draws = fe.sample(
        fe.BAOAB(program(gammas), step_size=0.1, friction=1.0),
        num_chains=20, num_samples=400, warmup_steps=100, thinning=5, progress_bar=False,
    )  # fmt: skip
    z = draws.posterior["z"].values.astype(np.float64)
    assert abs(z_score(float(z.mean()), 2.5, mcse_of_mean(z))) < 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: dist.MixtureSameFamily(
                HALVES, dist.Uniform(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 3.0]))
            ),
            r"'z' is a mixture whose components have different bounds, Interval\(.*: where one",
        ),
        (lambda: dist.MixtureSameFamily(HALVES, dist.Poisson(torch.ones(2))), "'z' is discrete"),
        (lambda: dist.Wishart(torch.tensor(4.0), torch.eye(2)), r"'z' \(Wishart\) .*LKJCholesky"),
        (lambda: dist.ProjectedNormal(torch.ones(3)), r"'z' \(ProjectedNormal\) .*over its length"),
        (lambda: dist.Delta(torch.ones(())), r"'z' is a point mass .*pyro.deterministic\('z', "),
        (
            lambda: torch.distributions.Normal(0.0, 1.0),
            r"'z' has a distribution of torch, Normal; give pyro\.distributions\.Normal$",
        ),
    ],
)
def test_what_has_no_transform_is_refused_in_one_sentence(make: Make, message: str) -> None:
    with pytest.raises(ValueError, match=f"^latent site {message}") as raised:
        Density(program(make))
    assert "Trace Shapes" not in str(raised.value)


def test_a_mixture_of_equal_bounds_written_once_is_fine() -> None:
    def model() -> None:
        parts = dist.Kumaraswamy(torch.tensor([1.0, 2.0]), 1.0)
        pyro.sample("z", dist.MixtureSameFamily(HALVES, parts))

    assert Density(model).num_parameters == 1
