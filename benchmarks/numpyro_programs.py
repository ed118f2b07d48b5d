"""The ten posteriors of posteriordb as NumPyro programs, for `answers.py`; arguments as ours.

As in `tests/posteriordb/programs.py`, one for each `model.stan`.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist


def flat(name: str, support: Any, shape: tuple[int, ...] = ()) -> Any:
    return numpyro.sample(name, dist.ImproperUniform(support, shape, ()))


def observe(design: Any, y: Any, beta: Any, sigma: Any) -> None:
    numpyro.sample("y", dist.Normal(design @ beta, sigma), obs=y)


def flat_regression(design: Any, y: Any) -> None:
    beta = numpyro.sample(
        "beta", dist.ImproperUniform(dist.constraints.real_vector, (), (design.shape[1],))
    )
    observe(design, y, beta, flat("sigma", dist.constraints.positive))


def kidscore_momiq(design: Any, y: Any) -> None:
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    beta = numpyro.sample(
        "beta", dist.ImproperUniform(dist.constraints.real_vector, (), (design.shape[1],))
    )
    observe(design, y, beta, sigma)


def blr(design: Any, y: Any) -> None:
    beta = numpyro.sample("beta", dist.Normal(jnp.zeros(design.shape[1]), 10.0).to_event(1))
    observe(design, y, beta, numpyro.sample("sigma", dist.HalfNormal(10.0)))


def kilpisjarvi(x: Any, y: Any, pmualpha: Any, psalpha: Any, pmubeta: Any, psbeta: Any) -> None:
    alpha = numpyro.sample("alpha", dist.Normal(pmualpha, psalpha))
    beta = numpyro.sample("beta", dist.Normal(pmubeta, psbeta))
    sigma = flat("sigma", dist.constraints.positive)
    numpyro.sample("y", dist.Normal(alpha + beta * x, sigma), obs=y)


def dogs(design: Any, y: Any) -> None:
    beta = numpyro.sample("beta", dist.Normal(jnp.zeros(3), 100.0).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=design @ beta), obs=y)


def eight_schools(y: Any, sigma: Any) -> None:
    theta_trans = numpyro.sample("theta_trans", dist.Normal(jnp.zeros(len(y)), 1.0).to_event(1))
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    theta = numpyro.deterministic("theta", theta_trans * tau + mu)
    numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def gauss_mix(y: Any) -> None:
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0 * jnp.ones(2)).to_event(1))
    mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.ordered_vector, (), (2,)))
    numpyro.factor("prior_of_mu", dist.Normal(0.0, 2.0).log_prob(mu).sum())
    theta = numpyro.sample("theta", dist.Beta(5.0, 5.0))
    weights = dist.Categorical(probs=jnp.stack([theta, 1 - theta]))
    numpyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)


PROGRAMS = {
    "dogs-dogs": dogs,
    "earnings-logearn_interaction": flat_regression,
    "eight_schools-eight_schools_noncentered": eight_schools,
    "kidiq-kidscore_momiq": kidscore_momiq,
    "kilpisjarvi_mod-kilpisjarvi": kilpisjarvi,
    "low_dim_gauss_mix-low_dim_gauss_mix": gauss_mix,
    "mesquite-logmesquite_logvash": flat_regression,
    "nes1976-nes": flat_regression,
    "sblrc-blr": blr,
    "sblri-blr": blr,
}
