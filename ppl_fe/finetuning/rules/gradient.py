"""Select the weights of the largest gradient of all the data."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ppl_fe.arguments import named_arguments
from ppl_fe.diverged import DivergedError
from ppl_fe.finetuning.flat_weights import WorkingCopy
from ppl_fe.finetuning.objective import divided
from ppl_fe.finetuning.scoring import Rule, Scores, Task


@named_arguments
@dataclass(frozen=True)
class Gradient(Rule):
    """Score a parameter by |∂L/∂w_i| at the anchor, L the mean loss of all the data.

    Of the eight scores that SPEFT compares for a fixed mask, this one came out best. Minibatches
    only bound the memory; their gradients are summed before the absolute value is taken, so that
    the noise of single rows averages out, unlike in `GradientSquared`. The gradient of a weight
    passes through a fresh head as it was made.

    Paper: Refining salience-aware sparse fine-tuning strategies for language models, ACL 2025.

    Example:
        >>> import ppl_fe as fe
        >>> network = fe.FlatNetwork(torch.nn.Linear(1, 1))
        >>> with torch.no_grad():
        ...     _ = network.anchor.copy_(torch.tensor([1.0, 0.0]))
        >>> data = (torch.tensor([[2.0], [0.0]]), torch.zeros(2))
        >>> found = fe.select_parameters(
        ...     network, data, rule=Gradient(), likelihood="normal", sparsity=0.5)
        >>> found.score
        tensor([2., 1.])
    """

    name = "gradient"

    def score(self, task: Task) -> Scores:
        """Sum the gradients of one pass through the data, and take their sizes.

        Raises:
            DivergedError: the loss or a gradient is not finite; says where.
        """
        working = WorkingCopy(task.network, task.objective)
        task.objective.check(working.module, task.source)
        total = torch.zeros_like(working.weights)
        try:
            for batch in divided(task.source, task.batch_size, task.seed):
                share = len(batch[1]) / task.source.num_data
                working.differentiate(batch)[1].add_to(total, share)
        except DivergedError as error:
            raise DivergedError(f"gradient: {error}") from error
        return Scores(total.abs(), settings={"batch_size": task.batch_size})
