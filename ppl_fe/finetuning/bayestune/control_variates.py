"""Gradients with the noise of minibatches mostly taken out: control variates at a reference point.

    ∇L(w) ≈ ∇L_B(w) − ∇L_B(w₀) + ∇L(w₀)

The estimate is unbiased at every w, and its variance is that of ∇L_B(w) − ∇L_B(w₀), which vanishes
with w − w₀ (Baker, Fearnhead, Fox & Nemeth 2019). The noise of N̂∇L_B alone has a variance in
proportion to N̂², next to curvatures in proportion to N̂: where the data count many times over, the
noise and not the posterior would rank the weights.

At first w₀ is the pretrained network with its fresh head trained. Half through its warm-up, and
once more an eighth later, each chain moves it to where it has come, since there the posterior lies,
and then no more: what is kept is a Markov chain. A step takes two gradients, and each ∇L(w₀) one
pass over the data.

Paper: Control variates for stochastic gradient MCMC, Stat. Comput. 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ppl_fe.finetuning.flat_gradient import GradientParts
from ppl_fe.finetuning.flat_weights import WorkingCopy
from ppl_fe.finetuning.objective import Batch


class ControlVariates:
    """A reference point w₀ and the gradient of all the data there.

    Args:
        working: the network at w₀.
        gradient: (D,) ∇L(w₀).
        differentiate_all: gives that gradient at the weights of `working`, for `move`.
        head: places of the fresh head's weights; none by default.

    Attributes:
        first_head: the head's weights at the first w₀.
        moved: whether w₀ is no longer that one.

    Example:
        >>> import torch
        >>> from ppl_fe.finetuning.objective import Objective
        >>> from ppl_fe.networks.flat import FlatNetwork
        >>> network = FlatNetwork(torch.nn.Linear(1, 1, bias=False).double())
        >>> objective = Objective("normal", network.device)
        >>> reference, working = (WorkingCopy(network, objective) for _ in range(2))
        >>> batch = torch.ones(4, 1).double(), torch.randn(4).double()
        >>> exact = torch.tensor([3.0]).double()
        >>> found = ControlVariates(reference, exact, lambda: exact).correct(
        ...     batch, working.differentiate(batch)[1])
        >>> found.block(slice(0, 1), torch.empty(1)).item()        # at w₀ every batch gives ∇L(w₀)
        3.0
    """

    def __init__(
        self,
        working: WorkingCopy,
        gradient: Tensor,
        differentiate_all: Callable[[], Tensor],
        head: Sequence[slice] = (),
    ) -> None:
        self.first_head = [working.weights[where].clone() for where in head]
        self.working, self.gradient, self.moved = working, gradient, False
        self._differentiate_all = differentiate_all

    def correct(self, batch: Batch, gradient: GradientParts) -> GradientParts:
        """Turn a batch's gradient elsewhere into the estimate above, in the same memory."""
        _, here = self.working.differentiate(batch)
        return gradient.corrected(here, self.gradient, self.working.network.slices.values())

    def move(self, weights: Tensor) -> None:
        """Take other weights (D,) as w₀.

        Raises:
            DivergedError: the loss or a gradient is not finite there.
        """
        self.working.weights.copy_(weights)
        self.gradient = self._differentiate_all()
        self.moved = True

    def state(self) -> dict[str, Tensor]:
        """Give what `restore` needs."""
        moved = torch.tensor(self.moved)
        return {"weights": self.working.weights, "gradient": self.gradient, "moved": moved}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to the reference of a `state`."""
        self.working.weights.copy_(state["weights"])
        self.gradient, self.moved = state["gradient"].to(self.gradient), bool(state["moved"])
