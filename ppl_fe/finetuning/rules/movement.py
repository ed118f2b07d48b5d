"""Select the weights that plain fine-tuning moves farthest."""

from __future__ import annotations

from dataclasses import dataclass

from ppl_fe.arguments import named_arguments, require_integer, require_positive
from ppl_fe.data.sources import LoaderData
from ppl_fe.finetuning.scoring import Rule, Scores, Task
from ppl_fe.finetuning.train.training import finetune


@named_arguments
@dataclass(frozen=True)
class Movement(Rule):
    """Score a parameter by |w_i − anchor_i| after fine-tuning every weight by AdamW.

    Args:
        num_steps: steps of that fine-tuning, 500 by default.
        learning_rate: of AdamW; None, the default, is what `finetune(method="full")` takes, 5e-5.

    Raises:
        ValueError: a setting out of range.

    Example:
        >>> import torch
        >>> import ppl_fe as fe
        >>> network = fe.FlatNetwork(torch.nn.Linear(9, 1))
        >>> data = (torch.zeros(2, 9), torch.tensor([0.0, 1.0]))
        >>> found = fe.select_parameters(
        ...     network, data, rule=Movement(num_steps=3, learning_rate=0.1), likelihood="normal",
        ...     sparsity=0.1, progress_bar=False)
        >>> found.mask.nonzero().item()                     # inputs of zero move the bias alone
        9
    """

    num_steps: int = 500
    learning_rate: float | None = None

    name = "movement"

    def __post_init__(self) -> None:
        require_integer("num_steps", self.num_steps, 1)
        if self.learning_rate is not None:
            require_positive("learning_rate", self.learning_rate)

    def score(self, task: Task) -> Scores:
        """Fine-tune in full and give how far each weight went.

        Raises:
            DivergedError: fine-tuning diverged.
        """
        tuned = finetune(
            task.network,
            task.source,
            likelihood=task.likelihood,
            method="full",
            head=task.head,
            num_steps=self.num_steps,
            learning_rate=self.learning_rate,
            batch_size=None if isinstance(task.source, LoaderData) else task.batch_size,
            seed=task.seed,
            progress_bar=task.progress_bar,
        )
        settings = {"batch_size": task.batch_size, **vars(self)}
        return Scores((tuned.weights - task.network.anchor).abs(), settings=settings)
