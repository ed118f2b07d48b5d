"""Mean, sd, split R-hat and ESS of every coordinate, from running sums instead of stored draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ppl_fe.inference.record.batch_sums import HalfSums, plan_batches
from ppl_fe.inference.record.split_statistics import MomentSummary, statistics

# Coordinates worked on at a time. At 1 MB a tensor the sums of a block stay in the cache through
# the operations of one draw; far smaller blocks cost calls (benchmarks/moments.py).
BLOCK_COORDINATES = 2**18
SUMS = ("means", "squares", "between", "batch_sum")


class RunningMoments:
    """Running sums over the kept draws of C chains, in one pass and constant memory.

    Kept per chain and coordinate: the means of the first ⌊S/2⌋ and of the last ⌊S/2⌋ draws, and the
    other sums of `batch_sums`, which both halves share: five tensors (C, D), six where S is odd,
    since the middle draw belongs to neither half.

    Args:
        num_chains: C.
        num_parameters: D.
        num_samples: S, the draws planned for each chain.
        dtype: of the sums, float32 or float64. Float32 is enough: R-hat then differs from ArviZ's
            by 1e-7 relative, and by 1e-6 at an offset of 100 sd.
        device: where the sums live; that of the draws.

    Raises:
        ValueError: a size below one, or another dtype.

    Example:
        >>> moments = RunningMoments(2, 1, 100, dtype=torch.float64, device="cpu")
        >>> for k in range(100):
        ...     moments.add(torch.tensor([[float(k % 4)], [float((k + 1) % 4)]]))
        >>> summary = moments.summary()
        >>> summary.mean.item(), round(summary.sd.item(), 3), round(summary.r_hat.item(), 3)
        (1.5, 1.121, 0.99)
    """

    def __init__(
        self,
        num_chains: int,
        num_parameters: int,
        num_samples: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        if min(num_chains, num_parameters, num_samples) < 1:
            raise ValueError(
                "num_chains, num_parameters and num_samples must be at least 1, got "
                f"{num_chains}, {num_parameters} and {num_samples}"
            )
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        self.num_chains, self.num_parameters = num_chains, num_parameters
        self.num_samples, self.num_draws = num_samples, 0
        self._batches, self._at = plan_batches(num_samples), 0
        self._means = torch.zeros((2, num_chains, num_parameters), dtype=dtype, device=device)
        self._squares, self._between, self._batch_sum = (
            torch.zeros_like(self._means[0]) for _ in range(3)
        )
        self._middle: Tensor | None = None
        # Views, made once: a slice costs as much as the arithmetic of a small problem.
        means = [_blocks(mean) for mean in self._means]
        shared = [_blocks(tensor) for tensor in (self._squares, self._between, self._batch_sum)]
        memory = torch.empty_like(means[0][0])
        self._sums = [
            [(HalfSums(*sums), memory[: len(sums[0])]) for sums in zip(mean, *shared, strict=True)]
            for mean in means
        ]

    def add(self, position: Tensor) -> None:
        """Add one kept draw of every chain, (C, D); it is not held and may be overwritten.

        A chain that has failed may go on giving NaN, which stays in its own sums.

        Raises:
            ValueError: another shape, or more draws than `num_samples`.
        """
        if position.shape != self._squares.shape:
            wanted, given = tuple(self._squares.shape), tuple(position.shape)
            raise ValueError(f"position must have shape {wanted}, got {given}")
        if self.num_draws == self.num_samples:
            raise ValueError(
                f"all num_samples={self.num_samples} draws were already added; "
                "give num_samples the number of draws to come"
            )
        batch = self._batches[self._at]
        if batch.half is None:
            self._middle = position.to(self._means, copy=True)
        else:
            for draw, (sums, memory) in zip(_blocks(position), self._sums[batch.half], strict=True):
                sums.add(draw, batch, self.num_draws, memory)
        self.num_draws += 1
        if self.num_draws == batch.stop:
            self._at += 1

    def summary(self, chains: Sequence[int] | None = None) -> MomentSummary:
        """Compute the statistics of the draws so far; the sums stay as they are.

        `r_hat` is `r_hat_of_parts` of the halves, ArviZ's method "split" once all S draws are in.
        Of an interrupted run the second half is shorter and weighs less; up to ⌊S/2⌋ draws there
        is none, and R-hat is that of whole chains (`is_split` false): a drift common to all chains
        then shows in the ESS alone. `ess` is `batch_means_ess`, no greater than `most_ess` of the
        halves. Batches of √S draws make it too large where the autocorrelation is long: for AR(1)
        of coefficient ρ by about 2ρ/((1−ρ²)√S), 4 % at ρ = 0.5 and 30 % at ρ = 0.9 for S = 1000.

        NaN stands for what is not known: R-hat and ESS with fewer than four draws or for a
        coordinate that never moved (of sd 0), R-hat of a single chain that is not split.

        Args:
            chains: which to use, those that failed left out; by default all.

        Raises:
            ValueError: no draws yet, or `chains` empty, repeated or not there.
        """
        picked = list(range(self.num_chains)) if chains is None else list(chains)
        if not picked or len({*picked}) < len(picked) or {*picked} - {*range(self.num_chains)}:
            raise ValueError(
                f"chains must be different numbers from 0 to {self.num_chains - 1}, got {picked}"
            )
        if self.num_draws == 0:
            raise ValueError("there are no draws yet: call add first")
        out = self._means.new_empty((4, self.num_parameters))
        width = max(1, BLOCK_COORDINATES // self.num_chains)
        for start in range(0, self.num_parameters, width):
            at = slice(start, start + width)
            out[:, at] = self._statistics(picked, at)
        is_split = self.num_draws > self.num_samples - self.num_samples // 2
        mean, sd, r_hat, ess = out.unbind()
        return MomentSummary(mean, sd, r_hat, ess, is_split)

    def _statistics(self, chains: list[int], at: slice) -> Tensor:
        """Compute `statistics` (4, ...) of some coordinates, with the present batch as it is."""
        squares, between, batch_sum = (
            tensor[chains, at].double()
            for tensor in (self._squares, self._between, self._batch_sum)
        )
        begun = [batch for batch in self._batches if batch.start < self.num_draws]
        halves: dict[int, tuple[Tensor, int]] = {}
        for batch in begun:
            if batch.half is not None:
                count = batch.before + min(batch.stop, self.num_draws) - batch.start
                halves[batch.half] = (self._means[batch.half, chains, at].double(), count)
        last = begun[-1]
        if last.half is not None and self.num_draws < last.stop:
            mean, count = halves[last.half]
            length = self.num_draws - last.start
            between += batch_sum.square() * last.before / (length * count)
            squares -= batch_sum.square() / count
            mean += batch_sum / count
        middle = None if self._middle is None else self._middle[chains, at].double()
        return statistics(
            [mean for mean, _ in halves.values()],
            [count for _, count in halves.values()],
            middle,
            within=squares.sum(0),
            between_batches=between.sum(0),
            num_batches=len(chains) * sum(batch.half is not None for batch in begun),
        )

    def state(self) -> dict[str, Tensor]:
        """Return what `restore` needs: numbers of draws, and the sums themselves, not copies."""
        sums = {name: getattr(self, f"_{name}") for name in SUMS}
        middle = {} if self._middle is None else {"middle": self._middle}
        return {"draws": torch.tensor([self.num_draws, self.num_samples])} | sums | middle

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Copy in the sums of a `state`, and go on as if never interrupted.

        Raises:
            ValueError: the state of another number of chains, parameters or samples, or dtype.
        """
        num_draws, num_samples = (int(count) for count in state["draws"])
        given = (tuple(state["means"].shape), state["means"].dtype, num_samples)
        wanted = (tuple(self._means.shape), self._means.dtype, self.num_samples)
        if given != wanted:
            raise ValueError(
                f"state has means of shape, dtype and num_samples {given}, but {wanted} is needed; "
                "restore it into moments made with the sizes of the run that it came from"
            )
        for name in SUMS:
            getattr(self, f"_{name}").copy_(state[name])
        middle = state.get("middle")
        self._middle = None if middle is None else middle.to(self._means, copy=True)
        self.num_draws = num_draws
        self._at = sum(batch.stop <= num_draws for batch in self._batches)


def _blocks(tensor: Tensor) -> Sequence[Tensor]:
    """Return the tensor itself, or pieces of it laid out flat where it is large."""
    if tensor.numel() <= BLOCK_COORDINATES:
        return (tensor,)
    flat, length = tensor.reshape(-1), BLOCK_COORDINATES
    return [flat[start : start + length] for start in range(0, len(flat), length)]
