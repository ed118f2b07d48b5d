"""Select every bias (BitFit)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ppl_fe.arguments import named_arguments
from ppl_fe.finetuning.scoring import Rule, Scores, Task


@named_arguments
@dataclass(frozen=True)
class BiasOnly(Rule):
    """Select the entries of every tensor called `bias`, however many these are.

    Paper: Zaken, Goldberg & Ravfogel, BitFit: Simple parameter-efficient fine-tuning for
    transformer-based masked language-models, ACL 2022.

    Example:
        >>> import ppl_fe as fe
        >>> network = fe.FlatNetwork(torch.nn.Linear(9, 1))
        >>> data = (torch.zeros(2, 9), torch.tensor([0.0, 1.0]))
        >>> fe.select_parameters(network, data, likelihood="normal", rule=BiasOnly())
        Selection(rule='bias_only', 1 of 10 parameters, 10 %)
          note: every bias is selected, 1; sparsity plays no part
    """

    name = "bias_only"
    takes_sparsity = False

    def score(self, task: Task) -> Scores:
        """Give 1 for entries of tensors called bias and 0 for the others.

        Raises:
            ValueError: no tensor is called so.
        """
        score = torch.zeros_like(task.network.anchor)
        for name, where in task.network.slices.items():
            if name.rpartition(".")[2] == "bias":
                score[where] = 1
        count = int(score[task.ranked.to(score.device)].sum())
        if not count:
            raise ValueError(
                "rule='bias_only': no parameter outside the head that may be chosen is called bias"
            )
        return Scores(score, notes=(f"every bias is selected, {count}; sparsity plays no part",))
