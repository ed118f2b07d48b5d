"""Select the weights of the largest gradient for their size, more in layers of higher entropy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_fe.arguments import named_arguments
from ppl_fe.finetuning.rules.gradient import Gradient
from ppl_fe.finetuning.scoring import Rule, Scores, Task


@named_arguments
@dataclass(frozen=True)
class GradientToWeight(Rule):
    """Rank the weights of each tensor by |∂L/∂w_i| / |w_i|; tensors share by their entropy.

    GEM updates what changes most for its size, and gives each layer a number of weights that goes
    with the entropy of its values. The abstract says no more, and the formulas are a reading of it:
    a tensor with p_i = |w_i| / Σ_j |w_j| has the entropy H = −Σ_i p_i log p_i, and of the weights
    selected the tensors get shares in proportion to H; one that has fewer leaves the rest to the
    others. So the weight of rank r in its tensor, from 0 on, scores −(r + ½)/H. Gradients
    are those of `Gradient`.

    Paper: GEM, a scale-aware and distribution-sensitive sparse fine-tuning framework for effective
    downstream adaptation, AAAI 2026.

    Example:
        >>> import ppl_fe as fe
        >>> network = fe.FlatNetwork(torch.nn.Linear(4, 1, bias=False))
        >>> with torch.no_grad():
        ...     _ = network.anchor.copy_(torch.tensor([0.1, 1.0, 1.0, 0.1]))
        >>> data = (torch.tensor([[2.0, 2.0, 1.0, 1.0]]), torch.zeros(1))
        >>> found = fe.select_parameters(
        ...     network, data, rule=GradientToWeight(), likelihood="normal", sparsity=0.5)
        >>> found.mask.tolist()              # the ratios stand as 20 : 2 : 1 : 10
        [True, False, False, True]
    """

    name = "gradient_to_weight"

    def score(self, task: Task) -> Scores:
        """Rank within tensors, by the gradients of one pass through the data.

        Raises:
            DivergedError: the loss or a gradient is not finite; says where.
        """
        found, network = Gradient().score(task), task.network
        smallest = torch.finfo(network.dtype).tiny
        score = torch.empty_like(found.score)
        for where in network.slices.values():
            size = network.anchor[where].abs()
            ratio = found.score[where] / size.clamp_min(smallest)
            rank = torch.empty_like(ratio)
            order = ratio.argsort(descending=True, stable=True)
            rank[order] = torch.arange(len(order), dtype=rank.dtype, device=rank.device)
            score[where] = -(rank + 0.5) / entropy(size).clamp_min(smallest)
        return found._replace(score=score)


def entropy(size: Tensor) -> Tensor:
    """Give −Σ p log p of p_i = size_i / Σ size in nats; of zeros alone, that of equal sizes.

    Example:
        >>> round(entropy(torch.tensor([3.0, 3.0, 0.0])).item(), 4)                         # log 2
        0.6931
    """
    total = size.double().sum()
    share = size.double() / total if total > 0 else torch.full_like(size, 1 / len(size)).double()
    terms: Tensor = torch.special.xlogy(share, share)
    return -terms.sum()
