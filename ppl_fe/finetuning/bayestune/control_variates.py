"""Gradients with the noise of minibatches mostly taken out: control variates at a reference point.

    ∇L(w) ≈ ∇L_B(w) − ∇L_B(w₀) + ∇L(w₀)

The estimate is unbiased at every w, and its variance is that of ∇L_B(w) − ∇L_B(w₀), which vanishes
with w − w₀ (Baker, Fearnhead, Fox & Nemeth 2019). The noise of N̂∇L_B alone has a variance in
proportion to N̂², next to curvatures in proportion to N̂: where the data count many times over, the
noise and not the posterior would rank the weights.

At first w₀ is the pretrained network with its fresh head trained, and there all chains start; or
that network fine-tuned, where from the first they would come too late (`ScaleChains.start`). Half
through its warm-up, and once more an eighth later, each chain moves w₀ to where it has come, since
there the posterior lies, and then no more: what is kept is a Markov chain. A step takes two
gradients, and each ∇L(w₀) one pass over the data. Chains so short that they start fine-tuned would
spend most of their time on that: they take half a pass, and move w₀ once.

Paper: Control variates for stochastic gradient MCMC, Stat. Comput. 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ppl_fe.finetuning.flat_gradient import GradientParts
from ppl_fe.finetuning.flat_weights import WorkingCopy
from ppl_fe.finetuning.objective import Batch

FITTED_PASS = 0.5  # of a pass, for each gradient of all the data from a fine-tuned start on


class ControlVariates:
    """A reference point w₀ and the gradient of all the data there.

    Args:
        working: the network at w₀.
        gradient: (D,) ∇L(w₀).
        differentiate_all: gives that gradient at the weights of `working`, of a share of a pass.
        fine_tune: gives the weights of `working`, fine-tuned, for `fit`.

    Attributes:
        start: (D,) offsets of the first w₀ from the anchor.
        moved: whether w₀ is no longer that one.
        fitted: whether that one is fine-tuned.

    Example:
        >>> import torch
        >>> from ppl_fe.finetuning.objective import Objective
        >>> from ppl_fe.networks.flat import FlatNetwork
        >>> network = FlatNetwork(torch.nn.Linear(1, 1, bias=False).double())
        >>> objective = Objective("normal", network.device)
        >>> reference, working = (WorkingCopy(network, objective) for _ in range(2))
        >>> batch = torch.ones(4, 1).double(), torch.randn(4).double()
        >>> exact = torch.tensor([3.0]).double()
        >>> found = ControlVariates(
        ...     reference, exact, lambda share: exact, lambda: reference.weights
        ... ).correct(batch, working.differentiate(batch)[1])
        >>> found.block(slice(0, 1), torch.empty(1)).item()        # at w₀ every batch gives ∇L(w₀)
        3.0
    """

    def __init__(
        self,
        working: WorkingCopy,
        gradient: Tensor,
        differentiate_all: Callable[[float], Tensor],
        fine_tune: Callable[[], Tensor],
    ) -> None:
        self.start = working.weights - working.network.anchor
        self.working, self.gradient = working, gradient
        self.moved = self.fitted = False
        self._differentiate_all, self._fine_tune = differentiate_all, fine_tune

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
        self.gradient = self._differentiate_all(FITTED_PASS if self.fitted else 1.0)
        self.moved = True

    def fit(self) -> None:
        """Take the network fine-tuned as the first w₀.

        Raises:
            DivergedError: the loss or a gradient is not finite on the way.
        """
        weights, self.fitted = self._fine_tune(), True
        self.move(weights)
        self.start = self.working.weights - self.working.network.anchor
        self.moved = False

    def state(self) -> dict[str, Tensor]:
        """Give what `restore` needs."""
        flags = torch.tensor([self.moved, self.fitted])
        own = {"weights": self.working.weights, "gradient": self.gradient, "start": self.start}
        return {**own, "flags": flags}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to the reference of a `state`."""
        self.working.weights.copy_(state["weights"])
        self.gradient = state["gradient"].to(self.gradient)
        self.start = state["start"].to(self.start)
        self.moved, self.fitted = state["flags"].tolist()
