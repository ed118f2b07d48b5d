"""A network's weights and their gradient as one vector each, with the module's own tensors in it.

`FlatNetwork` makes a vector into a network by `functional_call`; stage 1 goes the other way: the
module's parameters are views of a vector that is written in place. Each tensor's gradient is copied
into another vector, looked over and freed as soon as autograd has it, still in the cache: adding to
what stands there, after setting it to zero and before a look at all of it, goes through memory
three times more.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn

from ppl_fe.finetuning.objective import Batch, Objective, non_finite_layer
from ppl_fe.networks.flat import FlatNetwork
from ppl_fe.networks.matching import listed


class NotFiniteGradientError(FloatingPointError):
    """A loss or a gradient that is not finite; the message says where in the network."""


class WorkingCopy:
    """A copy of a network's module whose chosen parameters are views of one vector.

    Args:
        network: its module is copied; the vector starts at its anchor.
        objective: the mean negative log-likelihood of a batch.
        padding: entries after the last parameter that belong to none, so that a vector splits
            into equal blocks; always zero in `gradient`.

    Attributes:
        weights: (D + padding,) in the network's dtype; to be written in place.
        gradient: (D + padding,) of the last batch's loss, in the same dtype.

    Example:
        >>> network = FlatNetwork(nn.Linear(1, 1))
        >>> working = WorkingCopy(network, Objective("normal", network.device))
        >>> _ = working.weights.copy_(torch.tensor([2.0, 1.0]))
        >>> _ = working.differentiate((torch.ones(1, 1), torch.zeros(1)))
        >>> working.gradient                     # of ½(0 − (2·1 + 1))²
        tensor([3., 3.])
    """

    def __init__(self, network: FlatNetwork, objective: Objective, padding: int = 0) -> None:
        self.network, self.objective = network, objective
        self.module: nn.Module = copy.deepcopy(network.module).requires_grad_(False)
        size = network.num_parameters
        self.weights = network.anchor.new_zeros(size + padding)
        self.weights[:size] = network.anchor
        self.gradient = torch.zeros_like(self.weights)
        named = dict(self.module.named_parameters())
        for name, part in network.unflatten(self.weights[:size]).items():
            named[name].data = part
            named[name].requires_grad_(True)
        self._places = network.unflatten(self.gradient[:size])
        self._sums: dict[str, Tensor] = {}
        for name in self._places:
            take = partial(self._take, name)
            named[name].register_post_accumulate_grad_hook(take)  # type: ignore[no-untyped-call]

    def differentiate(self, batch: Batch) -> float:
        """Set `gradient` to that of the batch's mean loss at `weights`, and give the loss.

        Raises:
            NotFiniteGradientError: the loss or its gradient is not finite; says where.
        """
        self._sums.clear()
        loss, _ = self.objective(self.module, batch)
        value = loss.item()
        if not torch.isfinite(loss):
            where = non_finite_layer(self.module, self.objective, [batch])
            raise NotFiniteGradientError(f"the loss is {value}, {where}")
        loss.backward()  # type: ignore[no-untyped-call]
        for name in self._places.keys() - self._sums.keys():  # the loss does not depend on it
            self._places[name].zero_()
        # A sum is finite only if all its terms are.
        if self._sums and not torch.isfinite(torch.stack([*self._sums.values()]).sum()):
            raise NotFiniteGradientError(f"the gradient is not finite in {self._wrong()}")
        return value

    def _take(self, name: str, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._places[name].copy_(parameter.grad)
        self._sums[name] = parameter.grad.sum()
        parameter.grad = None

    def _wrong(self) -> str:
        parts = self.network.unflatten(self.gradient[: self.network.num_parameters])
        wrong = [name for name, part in parts.items() if not part.isfinite().all()]
        return listed(wrong) or "its sum, which overflows"


def padding_for(size: int, block: int) -> tuple[int, int]:
    """Blocks of one width, about `block` at most: the width, and the padding that makes it so.

    The width is a multiple of 16 entries, so that every block begins at a cache line.

    Example:
        >>> padding_for(100, 64)
        (64, 28)
    """
    count = -(-size // block)
    width = 16 * -(-size // (16 * count))
    return width, count * width - size
