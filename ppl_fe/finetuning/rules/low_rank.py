"""Select the weights that are largest once their matrix is reduced to its main directions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_fe.arguments import named_arguments, require_integer
from ppl_fe.finetuning.scoring import Rule, Scores, Task


@named_arguments
@dataclass(frozen=True)
class LowRank(Rule):
    """Score a weight by its size in the best approximation of rank r to its matrix.

    LIFT takes the large weights of what is left when the small singular values of a pretrained
    matrix are set to zero. No data are used. A tensor of more dimensions is a matrix of its
    outputs; one of fewer is not ranked and scores 0.

    Paper: LIFT the veil for the truth: principal weights emerge after rank reduction for
    reasoning-focused supervised fine-tuning, ICML 2025.

    Args:
        rank: r, 128 by default; a matrix of no higher rank is left as it is, and the score is then
            that of `Magnitude`.

    Raises:
        ValueError: a rank below 1.

    Example:
        >>> import ppl_fe as fe
        >>> network = fe.FlatNetwork(torch.nn.Linear(2, 2))
        >>> with torch.no_grad():                      # the main direction is 6/5 (1, 2; 2, 4)
        ...     _ = network.anchor.copy_(torch.tensor([2.0, 2.0, 2.0, 5.0, 9.0, 9.0]))
        >>> data = (torch.zeros(2, 2), torch.tensor([0, 1]))
        >>> found = fe.select_parameters(network, data, rule=LowRank(rank=1), sparsity=0.2)
        >>> [round(size, 4) for size in found.score.tolist()]
        [1.2, 2.4, 2.4, 4.8, 0.0, 0.0]
    """

    rank: int = 128

    name = "low_rank"

    def __post_init__(self) -> None:
        require_integer("rank", self.rank, 1)

    def score(self, task: Task) -> Scores:
        """Decompose each matrix of the pretrained network."""
        network = task.network
        score = torch.zeros_like(network.anchor)
        for name, part in network.unflatten(network.anchor).items():
            if part.dim() > 1:
                matrix = part.flatten(1)
                score[network.slices[name]] = self._reduced(matrix).abs().reshape(-1)
        return Scores(score, settings=vars(self))

    def _reduced(self, matrix: Tensor) -> Tensor:
        if self.rank >= min(matrix.shape):
            return matrix
        left, values, right = torch.linalg.svd(matrix.float(), full_matrices=False)
        r = self.rank
        reduced: Tensor = (left[:, :r] * values[:r]) @ right[:r]
        return reduced.to(matrix.dtype)
