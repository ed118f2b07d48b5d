"""Exact Gibbs sampling of the noise-free tempered posterior of a deep linear network."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .reduced_rank_gibbs import GibbsLLC
from .scores import mcse_of_mean

Array = NDArray[np.float64]

PROPOSAL_SD = 0.7  # of the logarithm of a hidden unit's scale; errs in no case, mixes at about half


def rank_blocks(widths: Sequence[int], rank: int) -> list[Array]:
    """Factors with an identity in the leading rank x rank block and zeros elsewhere.

    Every hidden unit that the product can spare is dead at both ends, so this is the most singular
    point of the true set, the one whose coefficient is Aoyagi's.

    Args:
        widths: H_1 .. H_{L+1}, from the inputs to the outputs.
        rank: r, the rank of the product.

    Returns:
        L arrays; the k-th, (H_{k+1}, H_k), acts k-th on the inputs.

    Example:
        >>> [factor.tolist() for factor in rank_blocks([2, 1, 2], 1)]
        [[[1.0, 0.0]], [[1.0], [0.0]]]
    """
    blocks = []
    for inputs, outputs in pairwise(widths):
        block = np.zeros((outputs, inputs))
        block[:rank, :rank] = np.eye(rank)
        blocks.append(block)
    return blocks


def deep_linear_gibbs_llc(
    widths: Sequence[int],
    rank: int,
    *,
    n_beta: float,
    gamma: float = 1.0,
    num_chains: int = 32,
    num_samples: int = 500,
    warmup_steps: int = 100,
    seed: int = 0,
) -> GibbsLLC:
    """Local learning coefficient of y = W_L ... W_1 x at `rank_blocks`, inputs with X'X/n = I.

    L = 1/2 |P - P*|^2 with P = W_L ... W_1, and the posterior is proportional to
    exp(-n beta L - gamma/2 sum_k |W_k - W_k*|^2). A sweep has two parts.

    Each factor given the others is Gaussian: with P = A W B, in the eigenbases of A'A and BB'
    (eigenvalues a_i, b_j) its entries are independent, of precision n beta a_i b_j + gamma. Given
    the others n beta L has a known mean; a draw is the average of the L of them (Rao-Blackwell).

    That alone would take some n beta sweeps along W_{k+1} G^-1, G W_k, which leave P as it is. So
    these are moved along as well (Liu & Sabatti 2000): G = I + e_i c', c_i = 0, of determinant 1,
    for which c is Gaussian, and the scale +-e^t of a unit by Metropolis, with the Jacobian
    e^{t (inputs - outputs)}.

    Args:
        widths: H_1 .. H_{L+1}, from the inputs to the outputs.
        rank: r, the rank of the true product.
        n_beta: number of data times inverse temperature.
        gamma: localisation, 1 by default.
        num_chains: C, all advanced at once, from N(w*, I/gamma), which is wider than the posterior.
        num_samples: S, sweeps kept of each chain.
        warmup_steps: sweeps left out first.
        seed: of the generator.

    Returns:
        A `GibbsLLC`, its error by batch means over all chains.

    Raises:
        ValueError: n_beta or gamma is not above zero, or the rank is above the smallest width.

    Example:
        >>> run = deep_linear_gibbs_llc([1, 2, 1], 1, n_beta=1e4, num_chains=4, num_samples=50)
        >>> run.draws.shape, bool(0.3 < run.llc < 0.7)
        ((4, 50), True)
    """
    if not (n_beta > 0.0 and gamma > 0.0):
        raise ValueError(f"n_beta = {n_beta} and gamma = {gamma} must be above zero.")
    if not 0 <= rank <= min(widths):
        raise ValueError(f"rank = {rank} must lie in 0 .. {min(widths)}, the smallest width.")
    rng = np.random.default_rng(seed)
    anchor = rank_blocks(widths, rank)
    noise = [rng.standard_normal((num_chains, *block.shape)) for block in anchor]
    factors = [block + z / np.sqrt(gamma) for block, z in zip(anchor, noise, strict=True)]
    draws = np.empty((num_chains, num_samples))
    for step in range(-warmup_steps, num_samples):
        means = [_draw_factor(factors, anchor, k, n_beta, gamma, rng) for k in range(len(factors))]
        for below, above, *stars in zip(factors, factors[1:], anchor, anchor[1:], strict=False):
            for unit in range(below.shape[1]):
                _shear(below, above, stars, unit, gamma, rng)
                _rescale(below, above, stars, unit, gamma, rng)
        if step >= 0:
            draws[:, step] = np.mean(means, axis=0)
    return GibbsLLC(llc=float(draws.mean()), mcse=mcse_of_mean(draws), draws=draws)


def _draw_factor(
    factors: list[Array],
    anchor: list[Array],
    k: int,
    n_beta: float,
    gamma: float,
    rng: np.random.Generator,
) -> Array:
    """Draw factor k given the others, in place; return (C,), E[n beta L | others]."""
    target = _product(anchor, anchor[0].shape[1])
    A = _product(factors[k + 1 :], factors[k].shape[1])
    B = _product(factors[:k], target.shape[1])
    a, U = np.linalg.eigh(A.swapaxes(-1, -2) @ A)
    b, V = np.linalg.eigh(B @ B.swapaxes(-1, -2))
    q = n_beta * np.clip(a, 0.0, None)[..., :, None] * np.clip(b, 0.0, None)[..., None, :]
    pull = n_beta * A.swapaxes(-1, -2) @ target @ B.swapaxes(-1, -2) + gamma * anchor[k]
    # A lone factor has nothing beside it that differs from chain to chain.
    mean = np.broadcast_to(U.swapaxes(-1, -2) @ pull @ V / (q + gamma), factors[k].shape)
    error = A @ (U @ mean @ V.swapaxes(-1, -2)) @ B - target
    z = rng.standard_normal(mean.shape)
    factors[k] = U @ (mean + z / np.sqrt(q + gamma)) @ V.swapaxes(-1, -2)
    spread = np.sum(q / (q + gamma), axis=(-2, -1))
    expected: Array = 0.5 * (n_beta * np.sum(error**2, axis=(-2, -1)) + spread)
    return expected


def _product(factors: list[Array], width: int) -> Array:
    product = np.eye(width)
    for factor in factors:
        product = factor @ product
    return product


def _shear(
    below: Array,
    above: Array,
    stars: list[Array],
    unit: int,
    gamma: float,
    rng: np.random.Generator,
) -> None:
    """Add c' (the other units' rows) to the unit's row below, and take its column off above."""
    others = np.arange(below.shape[1]) != unit
    rows, column = below[:, others], above[:, :, unit]
    precision = rows @ rows.swapaxes(1, 2)
    precision += np.sum(column**2, axis=1)[:, None, None] * np.eye(rows.shape[1])
    # The Gaussian of c: precision gamma (RR' + |h|^2 I), from both ends' distances to the anchor.
    pull = np.einsum("co,coj->cj", column, above[:, :, others] - stars[1][:, others])
    pull -= np.einsum("cji,ci->cj", rows, below[:, unit] - stars[0][unit])
    root = np.linalg.cholesky(precision)
    z = rng.standard_normal(pull.shape) / np.sqrt(gamma)
    whitened = np.linalg.solve(root, pull[:, :, None]) + z[:, :, None]
    c = np.linalg.solve(root.swapaxes(1, 2), whitened)[:, :, 0]
    below[:, unit] += np.einsum("cj,cji->ci", c, rows)
    above[:, :, others] -= column[:, :, None] * c[:, None, :]


def _rescale(
    below: Array,
    above: Array,
    stars: list[Array],
    unit: int,
    gamma: float,
    rng: np.random.Generator,
) -> None:
    """Multiply the unit's row below by +-e^t and divide its column above by it.

    The sign matters where no unit can be spared: then no other move leads past a dead unit.
    """
    row, column = below[:, unit], above[:, :, unit]
    t = PROPOSAL_SD * rng.standard_normal((len(below), 1))
    scale = rng.choice([-1.0, 1.0], size=t.shape) * np.exp(t)

    def distance(scale: Array | float) -> Array:
        ends = scale * row - stars[0][unit], column / scale - stars[1][:, unit]
        squares: Array = sum(np.sum(end**2, axis=1) for end in ends)
        return squares

    fall = 0.5 * gamma * (distance(scale) - distance(1.0))
    volume = t[:, 0] * (row.shape[1] - column.shape[1])
    accepted = np.log(rng.random(len(below))) < volume - fall
    scale = np.where(accepted[:, None], scale, 1.0)
    below[:, unit], above[:, :, unit] = row * scale, column / scale
