"""Exact Gibbs sampling of the noise-free tempered posterior of y = B A x with true product zero."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .scores import mcse_of_mean

Array = NDArray[np.float64]


class GibbsLLC(NamedTuple):
    """A Monte Carlo value of the local learning coefficient."""

    llc: float
    mcse: float
    draws: Array  # (C, S), a draw each of n beta E[L | one factor]; their mean is llc


def reduced_rank_gibbs_llc(
    M: int,
    N: int,
    H: int,
    *,
    n_beta: float,
    gamma: float = 1.0,
    second_moment: Array | None = None,
    num_chains: int = 128,
    num_samples: int = 1000,
    warmup_steps: int = 200,
    seed: int = 0,
) -> GibbsLLC:
    """Local learning coefficient at w* = 0 by alternating A | B and B | A.

    L(A, B) = 1/2 tr(B A S A'B') with S = X'X/n, and the posterior is proportional to
    exp(-n beta L - gamma/2 (|A|^2 + |B|^2)). Both conditionals are matrix Gaussians of mean zero:
    the rows of B have precision n beta A S A' + gamma I, and in the eigenbasis of S column j of A
    has precision n beta s_j B'B + gamma I. Neither depends on the data beyond S, and a rotation
    of the inputs leaves L and the prior alone, so A is kept in that basis. Given a factor, L has a
    known mean, 1/2 sum q/(q + gamma) over the precisions q from the data; a draw is the average
    of the two (Rao-Blackwell), which errs less than n beta L itself and has the same mean.

    Args:
        M: inputs; A is H x M.
        N: outputs; B is N x H.
        H: hidden units.
        n_beta: number of data times inverse temperature.
        gamma: localisation, 1 by default.
        second_moment: (M, M), S; None is the identity.
        num_chains: C, all advanced at once. Each starts from A ~ N(0, I/gamma), which is wider
            than the posterior.
        num_samples: S, sweeps kept of each chain.
        warmup_steps: sweeps left out first.
        seed: of the generator.

    Returns:
        A `GibbsLLC`, its error by batch means over all chains.

    Raises:
        ValueError: second_moment has another shape than (M, M), or n_beta or gamma is not above
            zero.

    Example:
        >>> run = reduced_rank_gibbs_llc(1, 1, 1, n_beta=100.0, num_chains=4, num_samples=50)
        >>> run.draws.shape, bool(0.0 < run.llc < 0.5)
        ((4, 50), True)
    """
    if not (n_beta > 0.0 and gamma > 0.0):
        raise ValueError(f"n_beta = {n_beta} and gamma = {gamma} must be above zero.")
    if second_moment is None:
        second_moment = np.eye(M)
    if second_moment.shape != (M, M):
        raise ValueError(f"second_moment has shape {second_moment.shape}; give ({M}, {M}).")
    s = np.linalg.eigvalsh(second_moment)
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((num_chains, H, M)) / np.sqrt(gamma)
    draws = np.empty((num_chains, num_samples))
    for step in range(-warmup_steps, num_samples):
        g, V = np.linalg.eigh((A * s) @ A.swapaxes(1, 2))
        q_B = n_beta * g  # (C, H)
        Z = rng.standard_normal((num_chains, N, H)) / np.sqrt(q_B + gamma)[:, None, :]
        B = Z @ V.swapaxes(1, 2)
        g, V = np.linalg.eigh(B.swapaxes(1, 2) @ B)
        q_A = n_beta * g[:, :, None] * s  # (C, H, M)
        A = V @ (rng.standard_normal((num_chains, H, M)) / np.sqrt(q_A + gamma))
        if step >= 0:
            given_A = 0.5 * N * np.sum(q_B / (q_B + gamma), axis=1)
            given_B = 0.5 * np.sum(q_A / (q_A + gamma), axis=(1, 2))
            draws[:, step] = 0.5 * (given_A + given_B)
    return GibbsLLC(llc=float(draws.mean()), mcse=mcse_of_mean(draws), draws=draws)
