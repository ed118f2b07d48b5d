"""Posteriors of hierarchies by quadrature, and of few parameters by importance sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import multivariate_t

Array = NDArray[np.float64]


class Moments(NamedTuple):
    """Mean and standard deviation (K,)."""

    mean: Array
    sd: Array


def group_hierarchy(
    log_likelihood: Callable[[Array], Array],
    log_prior: Callable[[Array, Array], Array],
    mu: Array,
    tau: Array,
) -> dict[str, Moments]:
    """Moments of mu, tau and the effects θ_j ~ N(mu, tau²), independent given the two.

    Each effect is integrated out on a grid of (θ − mu)/tau, and mu and tau on the grids given.

    Args:
        log_likelihood: θ (..., 1) -> (..., J), of each group's data.
        log_prior: (mu, tau) -> their joint log-density.
        mu: equally spaced grid.
        tau: grid equally spaced in log tau.

    Returns:
        "mu", "tau", and "theta" (J,).
    """
    z = np.linspace(-8, 8, 601)
    at_z = -0.5 * z**2 - logsumexp(-0.5 * z**2)
    logs, firsts, seconds = [], [], []
    for one in tau:
        theta = mu[:, None] + one * z  # (M, Z)
        terms = at_z[:, None] + log_likelihood(theta[..., None])  # (M, Z, J)
        marginal = logsumexp(terms, axis=1)
        weights = np.exp(terms - marginal[:, None])
        firsts.append((weights * theta[..., None]).sum(1))
        seconds.append((weights * theta[..., None] ** 2).sum(1))
        logs.append(marginal.sum(-1) + log_prior(mu, np.full_like(mu, one)) + np.log(one))
    joint = np.exp(np.array(logs) - np.max(logs))  # (T, M), of mu and log tau
    joint /= joint.sum()

    def moments(first: Array, second: Array) -> Moments:
        mean = np.tensordot(joint, first, 2)
        return Moments(mean, np.sqrt(np.tensordot(joint, second, 2) - mean**2))

    of_mu, of_tau = np.broadcast_arrays(mu[None], tau[:, None])
    return {
        "mu": moments(of_mu, of_mu**2),
        "tau": moments(of_tau, of_tau**2),
        "theta": moments(np.array(firsts), np.array(seconds)),
    }


def horseshoe(slopes: Array, error: float, scale: float) -> Moments:
    """Moments of β_j ~ N(0, tau² λ_j²), λ_j ~ C⁺(0, 1), tau ~ C⁺(0, scale).

    Args:
        slopes: (J,) measured, each N(β_j, error²): least squares on orthogonal columns.
        error: known.
        scale: of tau.
    """
    local = np.tan(0.5 * np.pi * (np.arange(4000) + 0.5) / 4000)  # equal shares of C⁺(0, 1)
    logs, firsts, seconds = [], [], []
    grid = np.exp(np.linspace(np.log(1e-5), np.log(1e3), 300)) * scale
    for tau in grid:
        prior = (tau * local[:, None]) ** 2  # (Λ, 1)
        total = prior + error**2
        terms = -0.5 * (np.log(total) + slopes**2 / total)  # (Λ, J)
        marginal = logsumexp(terms, axis=0)
        weights = np.exp(terms - marginal)
        mean = prior / total * slopes
        firsts.append((weights * mean).sum(0))
        seconds.append((weights * (mean**2 + prior * error**2 / total)).sum(0))
        logs.append(marginal.sum() - np.log1p((tau / scale) ** 2) + np.log(tau))
    joint = np.exp(np.array(logs) - np.max(logs))
    joint /= joint.sum()
    first, second = joint @ np.array(firsts), joint @ np.array(seconds)
    return Moments(first, np.sqrt(second - first**2))


class Weighted(NamedTuple):
    """Moments of few parameters, and the standard errors of the mean and the sd in sd (K,)."""

    moments: Moments
    mean_error: Array
    sd_error: Array


def by_importance(
    log_density: Callable[[Array], Array],
    start: Array,
    view: Callable[[Array], Array],
    num_draws: int = 200_000,
) -> Weighted:
    """Weigh draws of a Student's t about the mode, of the inverse Hessian's shape, five degrees.

    Args:
        log_density: (N, K) -> (N,), not normalised.
        start: (K,), from where the mode is found.
        view: (N, K) -> (N, K), of which the moments are taken.
        num_draws: of the proposal.
    """

    def energy(w: Any) -> float:
        return -float(log_density(np.asarray(w)[None])[0])

    found: Any = minimize(energy, start, method="BFGS")
    size, step = len(start), 1e-2 * np.sqrt(np.diag(found.hess_inv))
    offsets = np.diag(step)
    hessian = np.array(
        [
            [
                sum(
                    sign * energy(found.x + sa * a + sb * b)
                    for sa, sb, sign in ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))
                )
                for b in offsets
            ]
            for a in offsets
        ]
    ) / (4 * np.outer(step, step))
    proposal = multivariate_t(found.x, 1.3 * np.linalg.inv(hessian), df=5, seed=size)
    draws = proposal.rvs(num_draws)
    logs = log_density(draws) - proposal.logpdf(draws)
    weights = np.exp(logs - logs.max())
    weights = (weights / weights.sum())[:, None]
    values = view(draws)
    mean = (weights * values).sum(0)
    variance = (weights * (values - mean) ** 2).sum(0)
    squares = weights**2 * ((values - mean) ** 2 - variance) ** 2
    return Weighted(
        Moments(mean, np.sqrt(variance)),
        np.sqrt((weights**2 * (values - mean) ** 2).sum(0) / variance),
        np.sqrt(squares.sum(0)) / (2 * variance),
    )
