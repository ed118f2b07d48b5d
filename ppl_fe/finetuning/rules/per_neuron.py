"""Select the same number of weights in every neuron: those of its largest gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_fe.arguments import named_arguments
from ppl_fe.finetuning.bayestune.grouped import group_index
from ppl_fe.finetuning.rules.gradient import Gradient
from ppl_fe.finetuning.scoring import Rule, Scores, Task


@named_arguments
@dataclass(frozen=True)
class PerNeuron(Rule):
    """Rank the weights of each neuron by |∂L/∂w_i|; first come the first of all neurons.

    GPS spreads a budget over the whole network, the weights of the largest gradient among those
    that enter each neuron. A neuron is a row of a matrix, all weights of one output; a bias or
    another tensor of one dimension counts as one neuron. Of weights of equal rank in their neurons
    those of larger gradients come first. Its own loss, a contrastive one without a head, is not
    taken: gradients are those of `Gradient`.

    Paper: Gradient-based parameter selection for efficient fine-tuning, CVPR 2024.

    Example:
        >>> import ppl_fe as fe
        >>> network = fe.FlatNetwork(torch.nn.Linear(2, 3))
        >>> data = (torch.tensor([[2.0, 1.0]]), torch.tensor([0]))
        >>> rule = PerNeuron()
        >>> found = fe.select_parameters(network, (data[0].repeat(2, 1), torch.tensor([0, 1])),
        ...                              rule=rule, sparsity=0.4)
        >>> found.mask[:6].tolist()                  # of each neuron the weight of the larger input
        [True, False, True, False, True, False]
    """

    name = "per_neuron"

    def score(self, task: Task) -> Scores:
        """Rank within neurons, by the gradients of one pass through the data.

        Raises:
            DivergedError: the loss or a gradient is not finite; says where.
        """
        found = Gradient().score(task)
        rank = rank_in_neuron(found.score, group_index(task.network, "row"))
        largest = found.score.max().clamp_min(torch.finfo(found.score.dtype).tiny)
        return found._replace(score=0.5 * found.score / largest - rank)


def rank_in_neuron(size: Tensor, neuron: Tensor) -> Tensor:
    """Give the rank of each entry within its neuron, (D,) from 0 for the largest on.

    Args:
        size: (D,).
        neuron: (D,) the neuron of each entry.

    Example:
        >>> rank_in_neuron(torch.tensor([1.0, 2.0, 3.0, 9.0, 8.0]), torch.tensor([0, 0, 0, 1, 1]))
        tensor([2, 1, 0, 0, 1])
    """
    order = size.argsort(descending=True)
    order = order[neuron[order].argsort(stable=True)]
    counts = torch.bincount(neuron)
    starts = counts.cumsum(0) - counts
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - starts[neuron[order]]
    return rank
