"""Select by the squared gradient of the loss at the pretrained weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ppl_fe.arguments import named_arguments
from ppl_fe.diverged import DivergedError
from ppl_fe.finetuning.flat_weights import WorkingCopy
from ppl_fe.finetuning.objective import shuffled
from ppl_fe.finetuning.scoring import Rule, Scores, Task


@named_arguments
@dataclass(frozen=True)
class GradientSquared(Rule):
    """Score a parameter by Σ_B (∂L_B/∂w_i)² at the anchor, over one pass through the data.

    SAM of Fu et al. (2023) chooses the weights whose first step lowers a second-order approximation
    of the loss most, those of the largest squared gradient. Minibatches of B rows come in a random
    order: B = N squares the gradient of all the data, B = 1 sums squares over examples (the
    empirical Fisher information).

    Paper: On the effectiveness of parameter-efficient fine-tuning, AAAI 2023.

    Example:
        >>> import ppl_fe as fe
        >>> network = fe.FlatNetwork(torch.nn.Linear(1, 1))
        >>> with torch.no_grad():
        ...     _ = network.anchor.copy_(torch.tensor([1.0, 0.0]))
        >>> data = (torch.tensor([[2.0], [0.0]]), torch.zeros(2))
        >>> found = fe.select_parameters(
        ...     network, data, rule=GradientSquared(), likelihood="normal", sparsity=0.5,
        ...     batch_size=1)
        >>> found.score
        tensor([16.,  4.])
    """

    name = "gradient_squared"

    def score(self, task: Task) -> Scores:
        """Sum the squares of minibatches' gradients.

        Raises:
            DivergedError: the loss or a gradient is not finite; says where.
        """
        working, size = WorkingCopy(task.network, task.objective), task.batch_size
        task.objective.check(working.module, task.source)
        score = torch.zeros_like(working.weights)
        batches = shuffled(task.source, size, task.seed)
        try:
            for _ in range(task.source.num_data // size):
                working.differentiate(next(batches))[1].add_squares_to(score)
        except DivergedError as error:
            raise DivergedError(f"gradient_squared: {error}") from error
        return Scores(score, settings={"batch_size": size})
