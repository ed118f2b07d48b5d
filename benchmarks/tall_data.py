"""Rows of `answers.py --tall`: a logistic regression of 50 slopes on very many data.

Each way gives its draws of a call at its library's defaults, as a function of (seed, longer), and
where it takes minibatches they are of `BATCH` rows. The reference is Laplace's normal law, whose
draws are weighted by the posterior; they come in pairs w, 2 mode − w, so that what is linear is
exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_SLOPES, BATCH, PAIRS = 50, 1000, 400
Draws = dict[str, Any]  # name -> (C, S, *shape)
Array = NDArray[np.float64]


def data(num_data: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rows (N, 50) with a column of ones and correlated others, and labels (N,)."""
    generator = np.random.default_rng(num_data)
    mixing = np.eye(NUM_SLOPES) + 0.3 * generator.standard_normal((NUM_SLOPES, NUM_SLOPES)) / 7
    x = (generator.standard_normal((num_data, NUM_SLOPES)) @ mixing).astype(np.float32)
    x[:, 0] = 1.0
    slopes = (0.3 * generator.standard_normal(NUM_SLOPES)).astype(np.float32)
    return x, (generator.random(num_data) < 1 / (1 + np.exp(-x @ slopes))).astype(np.float32)


def by_ppl_fe(num_data: int) -> Callable[[int, int], Draws]:
    import pyro
    import pyro.distributions as dist
    import torch
    from torch import Tensor

    import ppl_fe as fe

    def regression(x: Tensor, y: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
        with pyro.plate("data", len(y), subsample_size=BATCH):
            rows, labels = pyro.subsample(x, event_dim=1), pyro.subsample(y, event_dim=0)
            pyro.sample("y", dist.Bernoulli(logits=rows @ slope), obs=labels)

    x, y = map(torch.from_numpy, data(num_data))

    def run(seed: int, longer: int) -> Draws:
        draws = fe.sample(regression, x, y, seed=seed, progress_bar=False)
        return {"slope": draws.posterior["slope"].values}

    return run


def by_numpyro(num_data: int, by_minibatches: bool) -> Callable[[int, int], Draws]:
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from jax.scipy.optimize import minimize
    from numpyro.infer import HMCECS, MCMC, NUTS

    def regression(x: Any, y: Any) -> None:
        slope = numpyro.sample("slope", dist.Normal(jnp.zeros(NUM_SLOPES), 1.0).to_event(1))
        size = BATCH if by_minibatches else None
        with numpyro.plate("data", len(y), subsample_size=size):
            rows, labels = x, y
            if by_minibatches:
                rows = numpyro.subsample(x, event_dim=1)
                labels = numpyro.subsample(y, event_dim=0)
            numpyro.sample("y", dist.Bernoulli(logits=rows @ slope), obs=labels)

    x, y = map(jnp.asarray, data(num_data))

    def kernel() -> Any:
        if not by_minibatches:
            return NUTS(regression)

        def mean_energy(slope: Any) -> Any:
            losses = jnp.logaddexp(0, x @ slope) - y * (x @ slope)
            return losses.mean() + 0.5 * slope @ slope / num_data

        found = minimize(mean_energy, jnp.zeros(NUM_SLOPES), method="BFGS")
        proxy = HMCECS.taylor_proxy({"slope": found.x})
        return HMCECS(NUTS(regression), num_blocks=10, proxy=proxy)

    def run(seed: int, longer: int) -> Draws:
        mcmc = MCMC(
            kernel(),
            num_warmup=1000,
            num_samples=1000 * longer,
            num_chains=4,
            chain_method="sequential",
            progress_bar=False,
        )
        mcmc.run(jax.random.PRNGKey(seed), x, y)
        return {"slope": np.asarray(mcmc.get_samples(group_by_chain=True)["slope"])}

    return run


def reference(num_data: int) -> tuple[Array, Array]:
    """Mean and sd (50,) of the posterior; their errors are below a fiftieth of an sd."""
    x, y = data(num_data)
    mode = np.zeros(NUM_SLOPES)
    for _ in range(12):
        p = 1 / (1 + np.exp(-(x @ mode.astype(np.float32)).astype(np.float64)))
        weighted = x * (p * (1 - p)).astype(np.float32)[:, None]
        precision = (x.T @ weighted).astype(np.float64) + np.eye(NUM_SLOPES)
        slope = (x.T @ (y - p).astype(np.float32)).astype(np.float64) - mode
        mode = mode + np.linalg.solve(precision, slope)
    root = np.linalg.inv(np.linalg.cholesky(precision)).T
    u = np.random.default_rng(0).standard_normal((PAIRS, NUM_SLOPES))
    draws = mode + np.concatenate([u, -u]) @ root.T
    logs = np.empty(len(draws))
    for k, w in enumerate(draws):
        logits = (x @ w.astype(np.float32)).astype(np.float64)
        logs[k] = (y * logits - np.logaddexp(0, logits)).sum() - 0.5 * w @ w
    logs += 0.5 * np.square(np.concatenate([u, u])).sum(1)
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    mean = weights @ draws
    # The spread by its ratio to that of the same draws unweighted, whose law is known.
    squares = np.concatenate([u, -u]) @ root.T
    known = (root**2).sum(1)
    variance = known * (weights @ (draws - mean) ** 2) / (squares**2).mean(0)
    return mean, np.sqrt(variance)


MAKERS: dict[str, Callable[[int], Callable[[int, int], Draws]]] = {
    "ppl-fe": by_ppl_fe,
    "NumPyro NUTS": lambda num_data: by_numpyro(num_data, False),
    "NumPyro HMCECS": lambda num_data: by_numpyro(num_data, True),
}
