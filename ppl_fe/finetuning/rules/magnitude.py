"""Select the largest pretrained weights."""

from __future__ import annotations

from dataclasses import dataclass

from ppl_fe.arguments import named_arguments
from ppl_fe.finetuning.scoring import Rule, Scores, Task


@named_arguments
@dataclass(frozen=True)
class Magnitude(Rule):
    """Score a parameter by |anchor_i|; the data do not matter.

    Example:
        >>> import torch
        >>> import ppl_fe as fe
        >>> network = fe.FlatNetwork(torch.nn.Linear(9, 1))
        >>> data = (torch.zeros(2, 9), torch.tensor([0.0, 1.0]))
        >>> found = fe.select_parameters(
        ...     network, data, likelihood="normal", rule=Magnitude(), sparsity=0.1)
        >>> found.mask.nonzero().item() == network.anchor.abs().argmax().item()
        True
    """

    name = "magnitude"

    def score(self, task: Task) -> Scores:
        """Give the absolute values of the pretrained weights."""
        return Scores(task.network.anchor.abs())
