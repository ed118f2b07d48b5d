"""Outputs with a Gaussian prior and any likelihood: their evidence, and predictions left one out.

Laplace's approximation at the mode (Rasmussen & Williams 2006, 3.4 and 3.5, with blocks where an
output has several numbers); under a normal likelihood it is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from ppl_fe.free_energy.downstream.zero_shot import losses
from ppl_fe.models.likelihoods import Likelihood

MOST_STEPS, ENOUGH = 100, 1e-7  # of Newton's method, and the fall in nats that ends it
SHORTEST = 1e-4  # share of a step of Newton's that is still tried


@dataclass(frozen=True)
class Fitted:
    """The posterior of the outputs.

    Attributes:
        free_energy: −log Z, in nats.
        left_out: (N, ...) outputs at each datum as the others predict them.
    """

    free_energy: float
    left_out: Tensor


@dataclass(frozen=True)
class GaussianProcess:
    """N outputs of K numbers, f ~ N(mean, covariance), and their targets.

    Attributes:
        mean: (N, K).
        covariance: (NK, NK).
        likelihood: of the targets.
        targets: (N, ...).
        shape: of one output, as the likelihood expects it.

    Example:
        >>> from ppl_fe.models import normal
        >>> mean, covariance = torch.zeros(2, 1).double(), torch.eye(2).double()
        >>> one = GaussianProcess(mean, covariance, normal, torch.ones(2, 1), torch.Size([1]))
        >>> one.fit().left_out.flatten().tolist()           # neither says anything of the other
        [0.0, 0.0]
    """

    mean: Tensor
    covariance: Tensor
    likelihood: Likelihood
    targets: Tensor
    shape: torch.Size

    def fit(self) -> Fitted:
        """Go to the mode by Newton's method, and sum up.

        Raises:
            ValueError: the log-likelihood, its derivatives, or what comes of them is not finite.
        """
        f, energy = self.mean, self._loss(self.mean)
        dual = torch.zeros_like(f).flatten()  # f = mean + covariance · dual
        for _ in range(MOST_STEPS):
            slope, root = self._derivatives(f)
            aim = _times(root, _times(root, (f - self.mean).flatten())) - slope.flatten()
            solved = torch.linalg.solve(self._inside(root), _times(root, self.covariance @ aim))
            newton, share, fall = aim - _times(root, solved), 1.0, 0.0
            while share > SHORTEST:
                tried = torch.lerp(dual, newton, share)
                moved = self.covariance @ tried
                there = self.mean + moved.reshape(f.shape)
                fall = energy - self._loss(there) - 0.5 * float(tried @ moved)
                if fall >= 0:
                    f, dual, energy = there, tried, energy - fall
                    break
                share /= 2
            if not fall > ENOUGH:
                break
        return self._summed_up(f, energy)

    def _loss(self, f: Tensor) -> float:
        return float(self._losses(f).sum())

    def _losses(self, f: Tensor) -> Tensor:
        return losses(self.likelihood, f.reshape(-1, *self.shape), self.targets)

    def _inside(self, root: Tensor) -> Tensor:
        """Give 1 + H^½ Σ H^½ (NK, NK)."""
        inside = _rows_times(root, _rows_times(root, self.covariance).T)
        inside.diagonal().add_(1.0)
        return inside

    def _summed_up(self, f: Tensor, energy: float) -> Fitted:
        slope, root = self._derivatives(f)
        inside, rooted = self._inside(root), _rows_times(root, self.covariance)
        posterior = self.covariance - rooted.T @ torch.linalg.solve(inside, rooted)
        (rows, count), places = f.shape, torch.arange(len(f), device=f.device)
        own = posterior.reshape(rows, count, rows, count)[places, :, places]
        # Without its own term a datum's posterior precision is less by H, and its mean follows.
        less = torch.eye(count, dtype=f.dtype, device=f.device) - own @ root @ root
        moved = torch.linalg.solve(less, own @ slope[..., None])[..., 0]
        value = energy + 0.5 * float(torch.linalg.slogdet(inside).logabsdet)
        if not (isfinite(value) and moved.isfinite().all()):
            raise ValueError(f"−log Z is {value}, or a prediction not finite")
        return Fitted(value, (f + moved).reshape(-1, *self.shape))

    def _derivatives(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """Give slope (N, K) of each datum's loss, and the root (N, K, K) of its curvature H.

        Where a likelihood is not concave, the curvature is taken as far as it is positive.
        """
        f = f.detach().requires_grad_()
        curvature = f.new_zeros(*f.shape, f.shape[1])
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self._losses(f).sum(), f, create_graph=True)
            for k in range(f.shape[1]) if slope.requires_grad else ():
                (row,) = torch.autograd.grad(slope[:, k].sum(), f, retain_graph=True)
                curvature[:, k] = row
        if not (slope.isfinite().all() and curvature.isfinite().all()):
            raise ValueError("the likelihood, or its derivatives by the outputs, are not finite")
        values, vectors = torch.linalg.eigh((curvature + curvature.mT) / 2)
        return slope.detach(), vectors * values.clamp_min(0).sqrt()[:, None] @ vectors.mT


def _times(blocks: Tensor, vector: Tensor) -> Tensor:
    """Multiply blocks (N, K, K) on a diagonal by a vector (NK,)."""
    return (blocks @ vector.reshape(len(blocks), -1, 1)).flatten()


def _rows_times(blocks: Tensor, matrix: Tensor) -> Tensor:
    """Multiply blocks (N, K, K) on a diagonal by a matrix (NK, M)."""
    rows, count = blocks.shape[:2]
    return (blocks @ matrix.reshape(rows, count, -1)).reshape(rows * count, -1)
