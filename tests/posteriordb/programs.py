"""Ten posteriors of posteriordb as Pyro programs, one for each `model.stan`.

The regressions share Stan's `y ~ normal(X beta, sigma)`: their programs take the design matrix X,
and `POSTERIORS` says how it is made of the data block. Plates over conditionally independent
observations are named "data" and take a `subsample_size`. All numbers are double precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import OrderedTransform
from torch import Tensor

Data = dict[str, Tensor]


def number(value: float) -> Tensor:
    """A constant in double precision, for a prior with no tensor of the data in it."""
    return torch.tensor(value, dtype=torch.float64)


def flat_real(size: int) -> Any:
    """Stan's default prior on a vector: improper, uniform over the reals.

    Masking a distribution takes it out of the log-density (Pyro's advice under `ImproperUniform`,
    which does not know what precision its values have).
    """
    return dist.Normal(number(0.0), number(1.0)).expand([size]).to_event(1).mask(False)


def flat_positive() -> Any:
    """Stan's default prior on `real<lower=0>`: improper, uniform over the positive numbers."""
    return dist.HalfNormal(number(1.0)).mask(False)


def observe(
    design: Tensor, y: Tensor, beta: Tensor, sigma: Tensor, subsample_size: int | None
) -> None:
    """y ~ normal(X beta, sigma): design (N, K), y (N,), beta (K,), sigma ()."""
    with pyro.plate("data", len(y), subsample_size=subsample_size):
        rows, targets = pyro.subsample(design, event_dim=1), pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Normal(rows @ beta, sigma), obs=targets)


def flat_regression(design: Tensor, y: Tensor, subsample_size: int | None = None) -> None:
    """logearn_interaction, logmesquite_logvash and nes: flat in beta and sigma > 0."""
    beta = pyro.sample("beta", flat_real(design.shape[1]))
    sigma = pyro.sample("sigma", flat_positive())
    observe(design, y, beta, sigma, subsample_size)


def kidscore_momiq(design: Tensor, y: Tensor, subsample_size: int | None = None) -> None:
    """Flat in beta; sigma ~ half Cauchy(2.5)."""
    sigma = pyro.sample("sigma", dist.HalfCauchy(number(2.5)))
    beta = pyro.sample("beta", flat_real(design.shape[1]))
    observe(design, y, beta, sigma, subsample_size)


def blr(design: Tensor, y: Tensor, subsample_size: int | None = None) -> None:
    """beta ~ N(0, 10²), sigma ~ half N(0, 10²)."""
    prior = dist.Normal(design.new_zeros(design.shape[1]), 10.0).to_event(1)
    beta = pyro.sample("beta", prior)
    sigma = pyro.sample("sigma", dist.HalfNormal(number(10.0)))
    observe(design, y, beta, sigma, subsample_size)


def kilpisjarvi(
    x: Tensor,
    y: Tensor,
    pmualpha: Tensor,
    psalpha: Tensor,
    pmubeta: Tensor,
    psbeta: Tensor,
    subsample_size: int | None = None,
) -> None:
    """A line with normal priors given as data; flat in sigma > 0."""
    alpha = pyro.sample("alpha", dist.Normal(pmualpha, psalpha))
    beta = pyro.sample("beta", dist.Normal(pmubeta, psbeta))
    sigma = pyro.sample("sigma", flat_positive())
    design = torch.stack([torch.ones_like(x), x], -1)
    observe(design, y, torch.stack([alpha, beta]), sigma, subsample_size)


def dogs(design: Tensor, y: Tensor, subsample_size: int | None = None) -> None:
    """Logistic regression of a shock on earlier avoidances and shocks; beta ~ N(0, 100²).

    The likelihood is a product over trials of the conditional given the earlier ones, and so are
    its minibatches.
    """
    beta = pyro.sample("beta", dist.Normal(design.new_zeros(3), 100.0).to_event(1))
    with pyro.plate("data", len(y), subsample_size=subsample_size):
        rows, shocks = pyro.subsample(design, event_dim=1), pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Bernoulli(logits=rows @ beta), obs=shocks)


def eight_schools_noncentered(y: Tensor, sigma: Tensor) -> None:
    """theta = mu + tau theta_trans; mu ~ N(0, 5²), tau ~ half Cauchy(5). One row a school."""
    theta_trans = pyro.sample("theta_trans", dist.Normal(torch.zeros_like(y), 1.0).to_event(1))
    mu = pyro.sample("mu", dist.Normal(number(0.0), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(number(5.0)))
    theta = pyro.deterministic("theta", theta_trans * tau + mu, event_dim=1)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def low_dim_gauss_mix(y: Tensor, subsample_size: int | None = None) -> None:
    """Two normals, labels summed out; means in ascending order, weight theta on the lower one.

    Stan's `mu ~ normal(0, 2)` on an ordered vector is that density cut off outside the order, not
    the law of a sorted pair's transform: hence the flat site and the factor.
    """
    sigma = pyro.sample("sigma", dist.HalfNormal(y.new_full((2,), 2.0)).to_event(1))
    ordered = dist.TransformedDistribution(dist.Normal(y.new_zeros(2), 1.0), [OrderedTransform()])
    mu = pyro.sample("mu", ordered.mask(False))
    pyro.factor("prior_of_mu", dist.Normal(number(0.0), 2.0).log_prob(mu).sum())
    theta = pyro.sample("theta", dist.Beta(number(5.0), number(5.0)))
    weights = dist.Categorical(probs=torch.stack([theta, 1 - theta]))
    with pyro.plate("data", len(y), subsample_size=subsample_size):
        mixture = dist.MixtureSameFamily(weights, dist.Normal(mu, sigma))
        pyro.sample("y", mixture, obs=pyro.subsample(y, event_dim=0))


def columns(*values: Tensor) -> Tensor:
    """(N,) each -> the design matrix (N, K + 1) with an intercept in front."""
    return torch.stack([torch.ones_like(values[0]), *values], -1)


def of_earnings(d: Data) -> tuple[Tensor, ...]:
    """log earnings on height, sex and their product."""
    return columns(d["height"], d["male"], d["height"] * d["male"]), d["earn"].log()


def of_mesquite(d: Data) -> tuple[Tensor, ...]:
    """log weight on the logarithms of volume, area, shape and height, and the group."""
    area = d["diam1"] * d["diam2"]
    sizes = (area * d["canopy_height"], area, d["diam1"] / d["diam2"], d["total_height"])
    return columns(*(size.log() for size in sizes), d["group"]), d["weight"].log()


def of_nes(d: Data) -> tuple[Tensor, ...]:
    """Party identification on eight covariates, age as a factor."""
    ages = [(d["age_discrete"] == group).to(torch.float64) for group in (2, 3, 4)]
    before, after = (d["real_ideo"], d["race_adj"]), (d["educ1"], d["gender"], d["income"])
    return columns(*before, *ages, *after), d["partyid7"]


def of_dogs(d: Data) -> tuple[Tensor, ...]:
    """y (dogs, trials) -> 1, avoidances so far, shocks so far, one row a trial."""
    shocks = d["y"].cumsum(1) - d["y"]
    trials = torch.arange(d["y"].shape[1], dtype=torch.float64)
    return columns((trials - shocks).flatten(), shocks.flatten()), d["y"].flatten()


def of_kilpisjarvi(d: Data) -> tuple[Tensor, ...]:
    return tuple(d[name] for name in ("x", "y", "pmualpha", "psalpha", "pmubeta", "psbeta"))


class Posterior(NamedTuple):
    """A program, and its arguments from Stan's data block."""

    program: Callable[..., None]
    arguments: Callable[[Data], tuple[Tensor, ...]]


POSTERIORS: dict[str, Posterior] = {
    "dogs-dogs": Posterior(dogs, of_dogs),
    "earnings-logearn_interaction": Posterior(flat_regression, of_earnings),
    "eight_schools-eight_schools_noncentered": Posterior(
        eight_schools_noncentered, lambda d: (d["y"], d["sigma"])
    ),
    "kidiq-kidscore_momiq": Posterior(
        kidscore_momiq, lambda d: (columns(d["mom_iq"]), d["kid_score"])
    ),
    "kilpisjarvi_mod-kilpisjarvi": Posterior(kilpisjarvi, of_kilpisjarvi),
    "low_dim_gauss_mix-low_dim_gauss_mix": Posterior(low_dim_gauss_mix, lambda d: (d["y"],)),
    "mesquite-logmesquite_logvash": Posterior(flat_regression, of_mesquite),
    "nes1976-nes": Posterior(flat_regression, of_nes),
    "sblrc-blr": Posterior(blr, lambda d: (d["X"], d["y"])),
    "sblri-blr": Posterior(blr, lambda d: (d["X"], d["y"])),
}
