"""Mean, sd, split R-hat and MCSE of every scale over chains that run one after another.

Chains in a row need one chain's sums at a time: a half that is finished is merged into the sums of
all halves, so that memory does not grow with the number of chains (`RunningMoments` serves chains
that run side by side, at five tensors a chain).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppl_fe.inference.record.split_statistics import LEAST_DRAWS, batch_means_ess, most_ess


class ScaleMoments:
    """Running sums of x, the value that each draw gives to a scale, and of its extra variance.

    x is a drawn λ; or E[λ | Δ], and the extra is Var[λ | Δ], by the law of total variance part of
    the variance of λ but not of the error of its mean. By Chan, Golub & LeVeque (1983), batch by
    batch of about √S draws, half a chain a group:

        m ← m + t/(n+b),  within ← within + Σ(x−m)² − t²/(n+b),  between ← between + t²n/(b(n+b))

    for b draws with Σ(x − m) = t after n of mean m; and a finished half of h draws and mean m after
    n draws of mean M, spread ← spread + (m − M)² nh/(n+h), M ← M + (m − M)h/(n+h).

    Args:
        size: D, padding included.
        num_chains, num_samples: C and S.
        like: gives dtype and device.
        errors: keep what R-hat and MCSE need: six tensors (D,), seven with an extra, against two.
            A half is then a group, so that one chain has an R-hat, too.

    Example:
        >>> moments = ScaleMoments(1, 2, 100, torch.zeros(0, dtype=torch.float64), errors=True)
        >>> for k in range(200):
        ...     moments.add(slice(0, 1), torch.tensor([float(k % 4)], dtype=torch.float64))
        ...     moments.next()
        >>> mean, sd, r_hat, mcse = moments.summary()
        >>> mean.item(), round(sd.item(), 3), round(r_hat.item(), 2)
        (1.5, 1.121, 0.99)
    """

    def __init__(
        self, size: int, num_chains: int, num_samples: int, like: Tensor, *, errors: bool
    ) -> None:
        self.num_chains, self.num_samples, self.errors = num_chains, num_samples, errors
        self.num_draws = 0
        zeros = [like.new_zeros(size) for _ in range(6 if errors else 2)]
        self._mean, self._within = zeros[:2]
        if errors:
            self._between, self._batch_sum, self._grand, self._spread = zeros[2:]
        self._extra: Tensor | None = None
        half = num_samples // 2
        self._halves = [half, num_samples - half] if errors and half else [num_samples]
        self._groups: list[int] = []  # finished halves' lengths
        self._num_batches = 0
        self._start_half()

    def add(self, at: slice, value: Tensor, extra: Tensor | None = None) -> None:
        """Take in one draw's values of some scales, (D',) of the block `at`."""
        mean, within = self._mean[at], self._within[at]
        if not self.errors:
            deviation = value - mean
            mean.add_(deviation, alpha=1 / (self.num_draws + 1))
            within.addcmul_(deviation, value - mean)
            if extra is not None:
                within.add_(extra)
            return
        if extra is not None:
            if self._extra is None:
                self._extra = torch.zeros_like(self._mean)
            self._extra[at] += extra
        batch_sum = self._batch_sum[at]
        if self._in_half == 0:
            mean.copy_(value)
        deviation = value - mean
        batch_sum.add_(deviation)
        within.addcmul_(deviation, deviation)
        if self._in_half + 1 == self._batch_end:
            before, after = self._batch_start, self._batch_end
            length = after - before
            self._between[at].addcmul_(batch_sum, batch_sum, value=before / (length * after))
            within.addcmul_(batch_sum, batch_sum, value=-1 / after)
            mean.add_(batch_sum, alpha=1 / after)
            batch_sum.zero_()
            if after == self._length:
                self._merge(at)

    def next(self) -> None:
        """All blocks of a draw are in."""
        self.num_draws += 1
        if not self.errors:
            return
        self._in_half += 1
        if self._in_half == self._batch_end:
            self._num_batches += 1
            if self._in_half == self._length:
                self._groups.append(self._length)
                self._start_half()
            else:
                self._next_batch()

    def summary(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Mean, sd, R-hat and MCSE (D,) each; the last two None where they are not kept.

        R-hat is that of halves, without rank normalisation; MCSE is sd/√ESS of the values x, by
        batch means (`batch_means_ess`), no smaller than the halves' distances say. All draws must
        be in. NaN for a scale that never moved.

        Raises:
            ValueError: draws are missing.
        """
        if not self.errors:
            variance = self._within / max(1, self.num_draws - 1)
            return self._mean, variance.sqrt(), None, None
        if self.num_draws != self.num_chains * self.num_samples:
            raise ValueError(
                f"{self.num_draws} draws are in, of {self.num_chains} chains of {self.num_samples}"
            )
        total, groups = self.num_draws, len(self._groups)
        variance = (self._within + self._spread) / (total - 1)
        sd = variance if self._extra is None else variance + self._extra / total
        if self.num_samples < LEAST_DRAWS:
            nan = torch.full_like(variance, float("nan"))
            return self._grand, sd.sqrt(), nan, nan
        size = (total - sum(n * n for n in self._groups) / total) / (groups - 1)
        ratio = self._spread / (groups - 1) / (self._within / (total - groups))
        r_hat = ((size - 1 + ratio) / size).sqrt()
        ess = torch.minimum(
            batch_means_ess(variance, self._between + self._spread, self._num_batches, total),
            most_ess(variance, self._spread, groups, total),
        )
        return self._grand, sd.sqrt(), r_hat, (variance / ess).sqrt()

    def so_far(self) -> Tensor:
        """(D,) means of the draws so far, of an unfinished run; not for later `add`."""
        if not self.errors:
            return self._mean
        done = sum(self._groups)
        half = self._mean
        if self._in_half > self._batch_start:
            half = half + self._batch_sum / max(1, self._in_half)
        return self._grand + (half - self._grand) * (self._in_half / max(1, done + self._in_half))

    def _start_half(self) -> None:
        self._length = self._halves[len(self._groups) % len(self._halves)]
        self._parts = max(1, round(self._length / math.sqrt(self.num_samples)))
        self._in_half = self._batch_start = self._part = self._batch_end = 0
        self._next_batch()

    def _next_batch(self) -> None:
        self._part += 1
        self._batch_start = self._batch_end
        self._batch_end = self._length * self._part // self._parts

    def _merge(self, at: slice) -> None:
        before, length = sum(self._groups), self._length
        gap = self._mean[at] - self._grand[at]
        self._spread[at].addcmul_(gap, gap, value=before * length / (before + length))
        self._grand[at].add_(gap, alpha=length / (before + length))
