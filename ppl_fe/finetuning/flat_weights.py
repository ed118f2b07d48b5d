"""A network's weights as one vector, with the module's own tensors in it.

`FlatNetwork` makes a vector into a network by `functional_call`; stage 1 goes the other way: the
module's parameters are views of a vector that is written in place. Each tensor's gradient is
checked as soon as autograd has it, still in the cache, and handed on where it lies: a vector of
them, set to zero, added to and checked as a whole, would cost another copy of the weights and go
through memory four times more. Of a large embedding only the rows that a batch uses are made.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import nan

import torch
from torch import Tensor, nn

from ppl_fe.diverged import DivergedError
from ppl_fe.finetuning.flat_gradient import BLOCK, GradientParts, Part, as_part, given
from ppl_fe.finetuning.objective import Batch, Objective, non_finite_layer
from ppl_fe.networks.flat import FlatNetwork
from ppl_fe.networks.matching import listed
from ppl_fe.ranks import are_several, each_said, own_part, own_share, summed


class WorkingCopy:
    """A copy of a network's module whose chosen parameters are views of one vector.

    Args:
        network: the network whose module is copied; the vector starts at its anchor.
        objective: the mean negative log-likelihood of a batch.
        padding: number of entries after the last parameter, 0 by default, that belong to none, so
            that a vector splits into equal blocks.

    Attributes:
        weights: (D + padding,) in the network's dtype; write to it in place.

    Example:
        >>> network = FlatNetwork(nn.Linear(1, 1))
        >>> working = WorkingCopy(network, Objective("normal", network.device))
        >>> _ = working.weights.copy_(torch.tensor([2.0, 1.0]))
        >>> loss, gradient = working.differentiate((torch.ones(1, 1), torch.zeros(1)))
        >>> gradient.block(slice(0, 2), torch.empty(2))                    # of ½(0 − (2·1 + 1))²
        tensor([3., 3.])
    """

    def __init__(self, network: FlatNetwork, objective: Objective, padding: int = 0) -> None:
        self.network, self.objective = network, objective
        self.module: nn.Module = copy.deepcopy(network.module).requires_grad_(False)
        size = network.num_parameters
        self.weights = network.anchor.new_zeros(size + padding)
        self.weights[:size] = network.anchor
        named = dict(self.module.named_parameters())
        for name, part in network.unflatten(self.weights[:size]).items():
            named[name].data = part
            named[name].requires_grad_(True)
        if not are_several():  # who add up whole vectors
            _give_rows_alone(self.module)
        self._parts: dict[str, Part] = {}
        self._sums: dict[str, Tensor] = {}
        for name in network.names:
            take = partial(self._take, name)
            named[name].register_post_accumulate_grad_hook(take)  # type: ignore[no-untyped-call]

    @contextmanager
    def in_full_precision(self) -> Iterator[None]:
        """Differentiate without autocast for a while, for gradients that are to be differenced."""
        usual, self.objective = self.objective, self.objective.in_full_precision
        try:
            yield
        finally:
            self.objective = usual

    def differentiate(self, batch: Batch) -> tuple[float, GradientParts]:
        """Compute a batch's mean loss at `weights` and its gradient, of several ranks together.

        Returns:
            The loss in nats a datum, and the gradient, which is freed with the caller's reference.

        Raises:
            DivergedError: the loss or its gradient is not finite; the message says where.
        """
        return self._of_all_ranks(batch) if are_several() else self._of_own(batch)

    def _of_all_ranks(self, batch: Batch) -> tuple[float, GradientParts]:
        """Each rank takes its rows; by their number the sums weigh as the whole batch."""
        share, size, failure = own_share(len(batch[1])), self.network.num_parameters, ""
        total = self.weights.new_zeros(size + 1)  # one vector, and so one sum over the ranks
        if share:
            try:
                loss, gradient = self._of_own(own_part(batch))
                gradient.add_to(total[:size], share)
                total[size] = share * loss
            except DivergedError as error:
                total[size], failure = nan, str(error)
        total = summed(total)
        if not total.sum().isfinite():
            failures = [*filter(None, each_said(failure)), "the sum over the ranks is not finite"]
            raise DivergedError(failures[0])
        slices = self.network.slices.values()
        return float(total[size]), GradientParts([(at, total[at]) for at in slices])

    def _of_own(self, batch: Batch) -> tuple[float, GradientParts]:
        self._parts, self._sums = {}, {}
        loss, _ = self.objective(self.module, batch)
        value = loss.item()
        if not torch.isfinite(loss):
            where = non_finite_layer(self.module, self.objective, [batch])
            raise DivergedError(f"the loss is {value}, {where}")
        loss.backward()  # type: ignore[no-untyped-call]
        parts, sums, self._parts = self._parts, self._sums, {}  # no second reference to the parts
        # A sum is finite only if all its terms are.
        if sums and not torch.isfinite(torch.stack([*sums.values()]).sum()):
            wrong = [name for name, part in parts.items() if not given(part).isfinite().all()]
            where = listed(sorted(wrong)) or "its sum, which overflows"
            raise DivergedError(f"the gradient is not finite in {where}")
        slices = self.network.slices
        return value, GradientParts([(slices[name], part) for name, part in parts.items()])

    def _take(self, name: str, parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradient, parameter.grad = as_part(parameter.grad), None
        self._sums[name], self._parts[name] = given(gradient).sum(), gradient


def _give_rows_alone(module: nn.Module) -> None:
    """Have autograd give of a large embedding's gradient the rows in use, not a matrix of zeros."""
    for part in module.modules():
        if (
            isinstance(part, nn.Embedding)
            and part.weight.numel() >= BLOCK
            and part.weight.device.type in ("cpu", "cuda")
            and not part.scale_grad_by_freq  # torch has no sparse gradient of it
        ):
            part.sparse = True


def padding_for(size: int, block: int) -> tuple[int, int]:
    """Find a width of blocks, about `block` at most, and the padding that fills the last one.

    The width is a multiple of 16 entries, so that every block begins at a cache line.

    Args:
        size: D, the number of entries.
        block: the width to stay near.

    Returns:
        The width and the padding.

    Example:
        >>> padding_for(100, 64)
        (64, 28)
    """
    count = -(-size // block)
    width = 16 * -(-size // (16 * count))
    return width, count * width - size
