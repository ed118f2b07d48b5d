"""Programs of the shapes that people give to Pyro's NUTS, small, each in a few lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.transforms import AffineTransform, ExpTransform
from pyro.infer.reparam import LocScaleReparam, TransformReparam
from pyro.nn import PyroModule, PyroSample
from torch import Tensor

GENERATOR = torch.Generator().manual_seed(7)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR)


def coins(*shape: int) -> Tensor:
    return torch.bernoulli(torch.full(shape, 0.6), generator=GENERATOR)


X, Y, TOSSES, COUNTS = normal(20, 2), normal(20), coins(12, 2), torch.tensor([1.0, 0.0, 3.0, 2.0])
LABELS = (X.sum(-1) > 0).float()


class Program(NamedTuple):
    """A program and its arguments."""

    model: Callable[..., Any]
    args: tuple[Any, ...] = ()


def gaussian_chain(data: Tensor) -> None:
    loc = torch.zeros(2)
    for i in range(3):
        loc = pyro.sample(f"loc_{i}", dist.Normal(loc, torch.ones(2)))
    pyro.sample("obs", dist.Normal(loc, torch.ones(2)), obs=data)


def logistic_regression(data: Tensor) -> Any:
    mean = pyro.param("coefs_mean", torch.zeros(2))
    coefs = pyro.sample("beta", dist.Normal(mean, torch.ones(2)))
    return pyro.sample("y", dist.Bernoulli(logits=(coefs * data).sum(-1)), obs=LABELS)


def dirichlet_categorical(data: Tensor) -> None:
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    pyro.sample("obs", dist.Categorical(p), obs=data)


def beta_bernoulli(data: Tensor) -> None:
    p = pyro.sample("p", dist.Beta(torch.tensor([1.1, 1.1]), torch.tensor([1.1, 1.1])))
    pyro.sample("obs", dist.Bernoulli(p), obs=data)


def beta_bernoulli_in_rows(data: Tensor) -> None:
    p = pyro.sample("p", dist.Beta(torch.tensor([1.1, 1.1]), torch.tensor([1.1, 1.1])))
    with pyro.plate("data", len(data), dim=-2):
        pyro.sample("obs", dist.Bernoulli(p), obs=data)


def beta_bernoulli_in_two_plates(data: Tensor) -> None:
    coin = pyro.plate("coin", 2, dim=-1)
    with coin:
        p = pyro.sample("p", dist.Beta(1.1, 1.1))
    with coin, pyro.plate("data", len(data), dim=-2):
        pyro.sample("obs", dist.Bernoulli(p), obs=data)


def parameters_of_two_columns() -> None:
    """A site of shape (2,) under a plate of dim −2 alone."""
    with pyro.plate("rows", 3, dim=-2):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), torch.tensor([1.0, 2.0])))
        pyro.sample("obs", dist.Normal(z, 1.0), obs=torch.ones(3, 2))


def gamma_normal(data: Tensor) -> None:
    scale = pyro.sample("scale", dist.Gamma(torch.ones(2), torch.ones(2)))
    pyro.sample("obs", dist.Normal(3, scale), obs=data)


def gamma_beta(data: Tensor) -> None:
    a = pyro.sample("alpha", dist.Gamma(1.0, 1.0))
    b = pyro.sample("beta", dist.Gamma(1.0, 1.0))
    pyro.sample("x", dist.Beta(a, b), obs=data)


def normal_normal(data: Tensor) -> Any:
    y = pyro.sample("y", dist.Normal(torch.tensor([0.0]), torch.ones(data.shape)))
    pyro.sample("obs", dist.Normal(y, torch.tensor([1.0])), obs=data)
    return y


def beta_binomial(data: Tensor) -> None:
    with pyro.plate("outer", data.shape[-1]):
        a = pyro.sample("a", dist.HalfCauchy(1.0))
        b = pyro.sample("b", dist.HalfCauchy(1.0))
        with pyro.plate("inner", data.shape[-2]), pyro.plate("data", data.shape[0]):
            pyro.sample("obs", dist.BetaBinomial(a, b, total_count=5), obs=data)


def gamma_poisson(data: Tensor) -> None:
    with pyro.plate("latent_dim", 2):
        a = pyro.sample("a", dist.HalfCauchy(1.0))
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.GammaPoisson(a, torch.tensor(1.0)), obs=data)


def nested_plates(data: Tensor) -> None:
    top = pyro.sample("top", dist.Normal(0.0, 1.0))
    with pyro.plate("groups", data.shape[1]):
        group = pyro.sample("group", dist.Normal(top, 0.5))
        with pyro.plate("rows", data.shape[0]):
            row = pyro.sample("row", dist.Normal(group, 0.3))
            pyro.sample("obs", dist.Normal(row, 1.0), obs=data)


def plates_side_by_side(data: Tensor) -> None:
    rows, columns = pyro.plate("rows", data.shape[0], dim=-2), pyro.plate("columns", 2, dim=-1)
    with rows:
        r = pyro.sample("r", dist.Normal(0.0, 1.0))
    with columns:
        c = pyro.sample("c", dist.Normal(0.0, 1.0))
    with rows, columns:
        pyro.sample("obs", dist.Normal(r + c, 1.0), obs=data)


def sequential_plates(data: Tensor) -> None:
    for i in pyro.plate("sites", 3):
        x = pyro.sample(f"x_{i}", dist.Normal(0.0, 1.0))
        for j in pyro.plate(f"columns_{i}", 2):
            pyro.sample(f"obs_{i}_{j}", dist.Normal(x, 1.0), obs=data[i, j])


def random_walk(data: Tensor) -> None:
    x = torch.tensor(0.0)
    for t in pyro.markov(range(4)):
        x = pyro.sample(f"x_{t}", dist.Normal(x, 1.0))
        pyro.sample(f"y_{t}", dist.Normal(x, 0.5), obs=data[t])


def by_precision(data: Tensor) -> None:
    mean = pyro.sample("mean", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    precision = rate * torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    with pyro.plate("data", len(data)):
        pyro.sample("obs", dist.MultivariateNormal(mean, precision_matrix=precision), obs=data)


def correlated(data: Tensor) -> None:
    scales = pyro.sample("scales", dist.HalfCauchy(1.0).expand([2]).to_event(1))
    factor = pyro.sample("factor", dist.LKJCholesky(2, 1.5))
    covariance = scales[:, None] * (factor @ factor.T) * scales
    with pyro.plate("data", len(data)):
        pyro.sample("obs", dist.MultivariateNormal(torch.zeros(2), covariance), obs=data)


def mixture(data: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("components", 2):
        means = pyro.sample("means", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0))
    parts = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(means, 1.0))
    with pyro.plate("data", len(data)):
        pyro.sample("obs", parts, obs=data)


def reparametrised() -> Any:
    def schools() -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        spread = pyro.sample("spread", dist.LogNormal(0.0, 1.0))
        with pyro.plate("schools", 3):
            effect = pyro.sample("effect", dist.Normal(mean, spread))
            pyro.sample("obs", dist.Normal(effect, 1.0), obs=torch.tensor([0.5, -1.0, 2.0]))

    return poutine.reparam(schools, config={"effect": LocScaleReparam(0.0)})


def by_transforms() -> Any:
    def program() -> None:
        transforms = [AffineTransform(1.0, 2.0), ExpTransform()]
        x = pyro.sample("x", dist.TransformedDistribution(dist.Normal(0.0, 1.0), transforms))
        pyro.sample("obs", dist.Normal(x.log(), 1.0), obs=torch.tensor(0.3))

    return poutine.reparam(program, config={"x": TransformReparam()})


def masked_and_scaled(data: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    kept = torch.arange(len(data)) % 3 > 0
    with pyro.plate("data", len(data)), poutine.scale(scale=2.0), poutine.mask(mask=kept):
        pyro.sample("obs", dist.Normal(mean, 1.0), obs=data)


def gaussian_hmm(data: Tensor) -> None:
    drift = pyro.sample("drift", dist.Normal(0.0, 1.0))
    states = dist.GaussianHMM(
        dist.MultivariateNormal(torch.zeros(1), torch.eye(1)),
        drift.reshape(1, 1),
        dist.MultivariateNormal(torch.zeros(1), torch.eye(1)),
        torch.eye(1),
        dist.MultivariateNormal(torch.zeros(1), torch.eye(1)),
        duration=4,
    )
    pyro.sample("obs", states, obs=data[:4, None])


class Line(PyroModule):
    """A regression whose weights are sites."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = PyroSample(dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        self.scale = PyroSample(lambda self: dist.LogNormal(self.weight.sum() * 0.1, 1.0))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        mean: Tensor = x @ self.weight
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, self.scale), obs=y)
        return mean


PROGRAMS: dict[str, Program] = {
    "gaussian chain": Program(gaussian_chain, (X,)),
    "logistic regression": Program(logistic_regression, (X,)),
    "dirichlet-categorical": Program(dirichlet_categorical, (torch.tensor([0, 1, 1, 2, 1]),)),
    "beta-bernoulli": Program(beta_bernoulli, (TOSSES,)),
    "beta-bernoulli, dim=-2": Program(beta_bernoulli_in_rows, (TOSSES,)),
    "beta-bernoulli, two plates": Program(beta_bernoulli_in_two_plates, (TOSSES,)),
    "columns under a plate of rows": Program(parameters_of_two_columns),
    "gamma-normal": Program(gamma_normal, (3 + X,)),
    "gamma-beta": Program(gamma_beta, (torch.tensor([0.7, 0.9, 0.8, 0.6]),)),
    "normal-normal": Program(normal_normal, (torch.tensor([2.0, 2.0, 2.0]),)),
    "beta-binomial": Program(beta_binomial, (torch.tensor([[[1.0, 4.0]], [[2.0, 3.0]]]),)),
    "gamma-poisson": Program(gamma_poisson, (COUNTS[:, None].expand(4, 2),)),
    "nested plates": Program(nested_plates, (X[:4],)),
    "plates side by side": Program(plates_side_by_side, (X[:4],)),
    "sequential plates": Program(sequential_plates, (X,)),
    "random walk": Program(random_walk, (Y,)),
    "precision matrix": Program(by_precision, (X,)),
    "correlations": Program(correlated, (X,)),
    "mixture": Program(mixture, (Y,)),
    "reparametrised": Program(reparametrised()),
    "transforms": Program(by_transforms()),
    "masked and scaled": Program(masked_and_scaled, (Y,)),
    "gaussian HMM": Program(gaussian_hmm, (Y,)),
    "PyroModule": Program(Line(), (X, Y)),
}
