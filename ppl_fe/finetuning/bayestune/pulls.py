"""How hard the data pull at each weight, and how often they must count for a scale to stand out.

With the log-likelihood −N̂ L(w) a weight is pulled from its pretrained value by N̂|g|, g = ∂L/∂w.
Given its scale, ∫ Laplace(Δ; 0, λ) exp(N̂ g Δ) dΔ = 1/(1 − (N̂ g λ)²), which grows without bound as
λ nears 1/(N̂|g|): from there on the weight leaves its place, and how far it gets is for the
curvature to say. The prior lets λ come so far with a probability of about α exp(−β/(N̂|g|)). So a
scale stands out where the pull is several β: by quadrature, at a curvature of 10⁴, its mean is 0.85
times the prior's at a pull of β, 6.6 times at 3β and 179 times at 5β
(tests/finetuning/test_what_moves_a_scale.py). At N̂ = n that holds for few weights of a large
network, or for none, and the others rank by luck. So N̂ is chosen by the room that there is:

    N̂ = 5β / (the |g| that as many weights reach as may be selected),

at least n, where the posterior is that of Bayes' rule. More would let ever more weights stand out
than may be selected, magnify the noise of the rows, and stiffen what has to be sampled.
benchmarks/data_weight.py compares N̂ from n to 1000 n.

With one scale for a group its pull is the norm of the group's gradient, since to second order
∏_i 1/(1 − (N̂ g_i λ)²) ≈ exp(N̂² λ² Σ g_i²).
"""

from __future__ import annotations

from itertools import islice
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_fe.data.sources import LoaderData, TensorData
from ppl_fe.finetuning.flat_weights import WorkingCopy
from ppl_fe.finetuning.objective import divided, shuffled

TELLING = 5.0  # β
WORTH_WHILE = 1.1  # n, from which N̂ is another than n
MOST_TIMES = 1e4  # n; where nothing pulls, nothing is gained by more
LEAST_BATCHES = 8  # of a pass, so that there are seven ways to halve it
MOST_NOISE = 20_000_000  # numbers (R, D) kept of it, unless D alone is more


class Pulls(NamedTuple):
    """The mean loss's gradient, and how much of it the choice of the rows may be.

    gradient: (D,) ∂L/∂w.
    by_chance: (R, D) R vectors, each as large as the noise of the rows in the gradient: the
        difference of two halves' gradients over two, R ways to halve the batches. R is 7 where
        there are 8 batches or more, less of fewer batches and of many weights, 0 of one batch.
    """

    gradient: Tensor
    by_chance: Tensor

    def outside(self, ranked: Tensor, group: Tensor | None) -> Sizes:
        """Give the sizes of both, of the weights that are ranked or of their groups.

        Args:
            ranked: (D,) bool.
            group: (D,) the group of each weight, whose norms the sizes are then; or None.
        """
        ranked = ranked.to(self.gradient.device)
        if group is None:
            return Sizes(self.gradient[ranked].abs(), self.by_chance[:, ranked].abs_(), None)
        group = group.to(ranked.device)
        members = torch.bincount(group[ranked], minlength=int(group.max()) + 1)

        def norms(vector: Tensor) -> Tensor:
            squares = vector.new_zeros(len(members)).index_add_(0, group, vector.square())
            return squares.sqrt_()[members > 0]

        noise = [norms(vector) for vector in self.by_chance]
        pull = norms(self.gradient)
        return Sizes(pull, torch.stack([pull, *noise])[1:], members[members > 0])


class Sizes(NamedTuple):
    """How hard each of U weights or groups of weights is pulled.

    pull: (U,).
    by_chance: (R, U) by the noise of the rows.
    members: (U,) how many weights a group has; None of weights.
    """

    pull: Tensor
    by_chance: Tensor
    members: Tensor | None

    @property
    def of_weights(self) -> Tensor:
        """The pull of every weight (D',), its group's if it has one."""
        return self.pull if self.members is None else self.pull.repeat_interleave(self.members)


def rows_of_a_pass(source: TensorData | LoaderData, batch_size: int, most: int) -> int:
    """Count the rows that `measure_pulls` sees: all of them, or those of `most` batches."""
    return min(source.num_data, most * batch_size)


def measure_pulls(
    working: WorkingCopy,
    source: TensorData | LoaderData,
    batch_size: int,
    most: int,
    seed: int,
    *,
    halves: bool = True,
) -> Pulls:
    """Go through the data once, at the weights of `working`.

    Args:
        working: the network.
        source: the data.
        batch_size: B, rows in a batch at most.
        most: batches of B rows at most, a random choice of all rows then.
        seed: of their order.
        halves: whether `by_chance` is wanted; R is 0 otherwise.

    Raises:
        DivergedError: the loss or a gradient is not finite.
    """
    rows = rows_of_a_pass(source, batch_size, most)
    batches = divided(source, min(batch_size, max(1, rows // LEAST_BATCHES)), seed)
    if rows < source.num_data:
        batches = islice(shuffled(source, batch_size, seed), most)
    mean = torch.zeros_like(working.weights[: working.network.num_parameters])
    ways = _ways(mean.numel()) if halves else 0
    signed = mean.new_zeros(ways, mean.numel())
    excess, count = [0.0] * ways, 0
    for batch in batches:
        share = len(batch[1]) / rows
        _, gradient = working.differentiate(batch)
        gradient.add_to(mean, share)
        for way in range(ways):
            side = _side(count, way) * share
            gradient.add_to(signed[way], side)
            excess[way] += side
        count += 1
    # Of K batches the first 2^m ≤ K fall on both sides in 2^m − 1 ways, no two of them alike.
    signed = signed[: 2 ** (count.bit_length() - 1) - 1]
    for vector, more in zip(signed, excess, strict=False):
        # Halves that are not quite of one size leave some of the mean, and less than all the noise.
        vector.sub_(mean, alpha=more).div_(sqrt(1 - more**2))
    return Pulls(mean, signed)


def _ways(num_weights: int) -> int:
    """Choose R, in how many ways to halve the batches: 7, 3 or 1."""
    return next((ways for ways in (7, 3) if ways * num_weights <= MOST_NOISE), 1)


def _side(batch: int, way: int) -> int:
    """Say in which half a batch is, 1 or −1: Walsh's functions, which are orthogonal.

    Example:
        >>> [[_side(batch, way) for batch in range(4)] for way in range(3)]
        [[1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    """
    return 1 - 2 * ((batch & (way + 1)).bit_count() % 2)


def least_of(pull: Tensor, count: int) -> float:
    """Give the size that `count` of the pulls (D',) reach.

    Example:
        >>> least_of(torch.tensor([1.0, 4.0, 2.0]), 2)
        2.0
    """
    least: Tensor = pull.kthvalue(len(pull) - count + 1).values
    return least.item()


def telling_weight(pull: Tensor, count: int, beta: float, num_data: int) -> float:
    """Give the N̂ at which `count` weights are pulled by five β: n at least, 10⁴ n at most.

    Args:
        pull: (D',) |∂L/∂w|.
        count: how many may be selected.
        beta: rate β of the scales' prior.
        num_data: n.

    Returns:
        N̂; n where it would be less than a tenth more, and where fewer weights than `count` are
        pulled at all.

    Example:
        >>> telling_weight(torch.tensor([0.1, 0.5, 0.25]), 2, beta=100.0, num_data=200)
        2000.0
    """
    least = least_of(pull, count)
    if least == 0 or TELLING * beta / least < WORTH_WHILE * num_data:
        return float(num_data)
    return min(TELLING * beta / least, MOST_TIMES * num_data)
