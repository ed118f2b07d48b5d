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
LEAST_BATCHES = 8  # of a pass, so that it has two halves


class Pulls(NamedTuple):
    """The mean loss's gradient, and how much of it the choice of the rows may be.

    gradient: (D,) ∂L/∂w.
    by_chance: (D,) as large as the noise of the rows in it: the difference of two halves' gradients
        over two. Zero where there is but one row.
    """

    gradient: Tensor
    by_chance: Tensor

    def outside(self, ranked: Tensor, group: Tensor | None) -> tuple[Tensor, Tensor]:
        """Give the sizes of both, (D',) each, of the weights that are ranked.

        Args:
            ranked: (D,) bool.
            group: (D,) the group of each weight, whose norms the sizes are then; or None.
        """
        sizes = []
        for values in self:
            size = values.abs()
            if group is not None:
                squares = size.new_zeros(int(group.max()) + 1)
                size = squares.index_add_(0, group, size.square()).sqrt_()[group]
            sizes.append(size[ranked.to(size.device)])
        return sizes[0], sizes[1]


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
        halves: whether `by_chance` is wanted; it is zero otherwise.

    Raises:
        DivergedError: the loss or a gradient is not finite.
    """
    rows = rows_of_a_pass(source, batch_size, most)
    batches = divided(source, min(batch_size, max(1, rows // LEAST_BATCHES)), seed)
    if rows < source.num_data:
        batches = islice(shuffled(source, batch_size, seed), most)
    mean = torch.zeros_like(working.weights[: working.network.num_parameters])
    signed = torch.zeros_like(mean if halves else mean[:0])
    side, excess, count = 1.0, 0.0, 0
    for batch in batches:
        share = len(batch[1]) / rows
        _, gradient = working.differentiate(batch)
        gradient.add_to(mean, share)
        if halves:
            gradient.add_to(signed, side * share)
        excess, side, count = excess + side * share, -side, count + 1
    if not halves or count == 1:
        return Pulls(mean, signed.zero_())
    # Halves that are not quite of one size leave some of the mean, and less than all the noise.
    signed.sub_(mean, alpha=excess).div_(sqrt(1 - excess**2))
    return Pulls(mean, signed)


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


def chance_share(pull: Tensor, by_chance: Tensor, count: int) -> float:
    """Estimate which share of the `count` strongest pulls the choice of the rows alone would give.

    As many as the noise brings above the size that `count` pulls reach, over `count`.

    Example:
        >>> pull, noise = torch.tensor([1.0, 4.0, 2.0]), torch.tensor([0.1, 3.0, 0.2])
        >>> chance_share(pull, noise, 2)
        0.5
    """
    return min(1.0, (by_chance >= least_of(pull, count)).sum().item() / count)
