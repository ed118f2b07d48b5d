"""Mean, sd, split R-hat and MCSE of every scale over chains that run one after another.

Chains in a row need one chain's sums at a time: a half that is finished is merged into the sums of
all halves, so that memory does not grow with the number of chains (`RunningMoments` serves chains
that run side by side, at five tensors a chain).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ppl_fe.finetuning.bayestune.chain_agreement import ChainAgreement
from ppl_fe.finetuning.bayestune.sequence_errors import sequence_mcse
from ppl_fe.inference.record.batch_sums import HalfSums, plan_batches
from ppl_fe.inference.record.split_statistics import (
    LEAST_DRAWS,
    batch_means_ess,
    most_ess,
    r_hat_of_parts,
)

SUMS = ("mean", "within", "between", "batch_sum", "grand", "spread")


class ScaleMoments:
    """Running sums of x, the value that each draw gives to a scale, and of its extra variance.

    x is a drawn λ; or E[λ | Δ], and the extra is Var[λ | Δ], by the law of total variance part of
    the variance of λ but not of the error of its mean. The sums of half a chain are those of
    `batch_sums`. A finished half of h draws and mean m is merged after n draws of mean M by

        spread ← spread + (m − M)² nh/(n+h),  M ← M + (m − M)h/(n+h).

    Args:
        size: D, padding included.
        num_chains: C, one after another.
        num_samples: S, draws of each chain.
        like: gives dtype and device.
        errors: keep what R-hat and MCSE need: six tensors (D,), seven with an extra, against two.
            R-hat is that of halves, so that one chain has it, too.
        watched: (M,) ascending, scales whose mean of every chain is kept as well; none by default.
        sequences: keep all draws, too, for the errors of scales that change but rarely; False by
            default.

    Attributes:
        agreement: of the chains, on the watched scales; None without any.

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
        self,
        size: int,
        num_chains: int,
        num_samples: int,
        like: Tensor,
        *,
        errors: bool,
        watched: Tensor | None = None,
        sequences: bool = False,
    ) -> None:
        self.num_chains, self.num_samples, self.errors = num_chains, num_samples, errors
        self.agreement = None if watched is None else ChainAgreement(watched, num_chains)
        self.num_draws = 0
        self._mean, self._within = like.new_zeros(size), like.new_zeros(size)
        if errors:
            self._between, self._batch_sum = like.new_zeros(size), like.new_zeros(size)
            self._grand, self._spread = like.new_zeros(size), like.new_zeros(size)
        self._extra: Tensor | None = None
        self._draws = like.new_zeros(num_chains, num_samples, size) if sequences else None
        self._batches = plan_batches(num_samples, middle_apart=False)
        self._batch = 0  # the number of the present one within its chain

    def add(self, at: slice, value: Tensor, extra: Tensor | None = None) -> None:
        """Add one draw's values (D',) of the scales in the block `at`, and their extra variance."""
        if self.agreement is not None:
            self.agreement.add(self.num_draws // self.num_samples, at, value)
        if self._draws is not None:
            self._draws[self.num_draws // self.num_samples, self._place, at] = value
        if not self.errors:
            mean, within = self._mean[at], self._within[at]
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
        sums = HalfSums(self._mean[at], self._within[at], self._between[at], self._batch_sum[at])
        batch = self._batches[self._batch]
        sums.add(value, batch, self._place)
        if self._place + 1 == batch.stop and self._ends_half:
            self._merge(at, batch.before + batch.stop - batch.start)

    def next(self) -> None:
        """Go on to the next draw, once all blocks of this one are in."""
        if self.errors and self._place + 1 == self._batches[self._batch].stop:
            self._batch = (self._batch + 1) % len(self._batches)
        self.num_draws += 1

    def state(self) -> dict[str, Tensor]:
        """Give what `restore` needs: the sums themselves, not copies, and the draws' number."""
        names = SUMS if self.errors else SUMS[:2]
        sums = {name: getattr(self, f"_{name}") for name in names}
        extra = {} if self._extra is None else {"extra": self._extra}
        if self.agreement is not None:
            extra["chains"] = self.agreement.sums
        if self._draws is not None:
            extra["draws"] = self._draws
        return {"at": torch.tensor([self.num_draws, self._batch])} | sums | extra

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from the `state` of moments that were made alike."""
        self.num_draws, self._batch = (int(number) for number in state["at"])
        for name in SUMS if self.errors else SUMS[:2]:
            getattr(self, f"_{name}").copy_(state[name])
        if "extra" in state:
            self._extra = state["extra"].to(self._mean)
        if self.agreement is not None:
            self.agreement.sums.copy_(state["chains"])
        if self._draws is not None:
            self._draws.copy_(state["draws"])

    def summary(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Compute mean, sd, R-hat and MCSE, (D,) each; the last two None without `errors`.

        R-hat is that of halves, without rank normalisation; MCSE is sd/√ESS of the values x, the
        ESS by `batch_means_ess` and no greater than `most_ess` of the halves, and at least
        `sequence_mcse` where draws are kept. NaN for a scale that never moved.

        Raises:
            ValueError: draws are missing.
        """
        if not self.errors:
            variance = self._within / max(1, self.num_draws - 1)
            return self._mean, variance.sqrt(), None, None
        total, half = self.num_draws, self.num_samples // 2
        if total != self.num_chains * self.num_samples:
            raise ValueError(
                f"{total} draws are in, of {self.num_chains} chains of {self.num_samples}"
            )
        variance = (self._within + self._spread) / (total - 1)
        sd = variance if self._extra is None else variance + self._extra / total
        if self.num_samples < LEAST_DRAWS:
            nan = torch.full_like(variance, float("nan"))
            return self._grand, sd.sqrt(), nan, nan
        halves = [half, self.num_samples - half] * self.num_chains
        r_hat = r_hat_of_parts(self._within, self._spread, halves)
        num_batches = self.num_chains * len(self._batches)
        ess = torch.minimum(
            batch_means_ess(variance, self._between + self._spread, num_batches, total),
            most_ess(variance, self._spread, len(halves), total),
        )
        mcse = (variance / ess).sqrt()
        if self._draws is not None:
            mcse = torch.maximum(mcse, sequence_mcse(self._draws))
        return self._grand, sd.sqrt(), r_hat, mcse

    def so_far(self) -> Tensor:
        """Compute means (D,) of the draws of an unfinished run; add none afterwards."""
        if not self.errors:
            return self._mean
        batch = self._batches[self._batch]
        in_half = batch.before + self._place - batch.start
        half = self._mean
        if in_half > batch.before:
            half = half + self._batch_sum / in_half
        return self._grand + (half - self._grand) * (in_half / max(1, self.num_draws))

    @property
    def _place(self) -> int:
        """The number of the present draw within its chain."""
        return self.num_draws % self.num_samples

    @property
    def _ends_half(self) -> bool:
        """Whether the present batch is the last one of its half."""
        return self._batches[(self._batch + 1) % len(self._batches)].before == 0

    def _merge(self, at: slice, length: int) -> None:
        before = self.num_draws + 1 - length
        gap = self._mean[at] - self._grand[at]
        self._spread[at].addcmul_(gap, gap, value=before * length / (before + length))
        self._grand[at].add_(gap, alpha=length / (before + length))
