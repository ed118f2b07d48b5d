"""Select at random: the rule that any other has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ppl_fe.arguments import named_arguments
from ppl_fe.finetuning.scoring import Rule, Scores, Task


@named_arguments
@dataclass(frozen=True)
class Random(Rule):
    """Score parameters uniformly on (0, 1), by the seed alone.

    Example:
        >>> import ppl_fe as fe
        >>> network = fe.FlatNetwork(torch.nn.Linear(9, 1))
        >>> data = (torch.zeros(2, 9), torch.tensor([0.0, 1.0]))
        >>> fe.select_parameters(network, data, likelihood="normal", rule=Random(), sparsity=0.1)
        Selection(rule='random', 1 of 10 parameters, 10 %)
    """

    name = "random"

    def score(self, task: Task) -> Scores:
        """Draw one number for each parameter."""
        network = task.network
        generator = torch.Generator(network.device).manual_seed(task.seed)
        score = torch.rand(network.anchor.shape, generator=generator, device=network.device)
        return Scores(score)
