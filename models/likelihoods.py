"""Likelihoods: (network output, targets) -> the observed site `y`.

Each includes every normalising constant, so that a loss is a negative log-probability in nats. All
are to be called inside a plate over the data: one batch dimension B, the datum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.scale_messenger import ScaleMessenger
from torch import Tensor

Likelihood = Callable[[Tensor, Tensor], object]

IGNORED_TOKEN = -100  # the label that Hugging Face gives to padding


def categorical(output: Tensor, targets: Tensor) -> Tensor:
    """Observe y_i ~ Categorical(softmax(output_i)): output (B, K) logits, targets (B,) integers.

    Example:
        >>> with pyro.plate("data", 2):
        ...     y = categorical(torch.zeros(2, 3), torch.tensor([0, 2]))
    """
    value: Tensor = pyro.sample("y", dist.Categorical(logits=output), obs=targets)
    return value


def normal(output: Tensor, targets: Tensor) -> Tensor:
    """Observe y_i ~ Normal(output_i, 1): both (B,) or (B, K), or output (B, 1) and targets (B,).

    The unit scale makes −log p = ½(y − output)² + ½ log 2π a datum and dimension; rescale the
    targets for another.
    """
    mean = output.reshape(targets.shape)
    value: Tensor = pyro.sample(
        "y", dist.Normal(mean, 1.0).to_event(targets.dim() - 1), obs=targets
    )
    return value


def next_token(output: Tensor, targets: Tensor) -> Tensor:
    """Observe token t+1 given those up to t: output (B, T, V) logits, targets (B, T) token ids.

    −log p of a datum is the sum over its tokens; tokens with the target −100 do not count.
    """
    logits, following = output[:, :-1], targets[:, 1:]
    counted = following != IGNORED_TOKEN
    token = dist.Categorical(logits=logits).mask(counted).to_event(1)
    value: Tensor = pyro.sample("y", token, obs=torch.where(counted, following, 0))
    return value


def observe(
    likelihood: Likelihood, output: Tensor, targets: Tensor, tempering: float | Tensor = 1.0
) -> None:
    """Run a likelihood to a power, for posteriors, fine-tuning and losses alike.

    What the likelihood weights or masks by itself, with `poutine.scale`, `poutine.mask` or
    `obs_mask=`, is part of log p(y_i | x_i, w); the power is not, and a loss leaves it out. Targets
    that `obs_mask=` declares missing are integrated out, which takes no term at all.

    Args:
        likelihood: (output, targets) -> observed site.
        output: (B, ...) of the network.
        targets: (B, ...).
        tempering: β, or any other power of the posterior's, 1 by default.

    Example:
        >>> with pyro.plate("data", 2):
        ...     observe(categorical, torch.zeros(2, 3), torch.tensor([0, 2]), 0.5)
    """
    with Tempering(tempering), _WithoutMissing():
        likelihood(output, targets)


class Tempering(ScaleMessenger):
    """`poutine.scale` by a power of the posterior's own, which no loss contains.

    A site within keeps, under "untempered" in its `infer`, the scale and the plates that it had
    before.
    """

    def _process_message(self, msg: Any) -> None:
        if msg["type"] == "sample":
            msg["infer"]["untempered"] = msg["scale"], msg["cond_indep_stack"]
        super()._process_message(msg)


class _WithoutMissing(Messenger):
    """Take what `pyro.sample(..., obs_mask=)` adds to its observed site out of the program."""

    def __init__(self) -> None:
        super().__init__()
        self.observed: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name.endswith("_observed"):
            self.observed.add(name.removesuffix("_observed"))
        elif name.removesuffix("_unobserved") in self.observed and not msg["is_observed"]:
            msg["value"] = torch.zeros(msg["fn"].shape())
            msg["done"] = msg["stop"] = True
        elif name in self.observed and msg["infer"].get("_deterministic"):
            msg["stop"] = True


LIKELIHOODS: dict[str, Likelihood] = {
    "categorical": categorical,
    "normal": normal,
    "next_token": next_token,
}


def find_likelihood(likelihood: str | Likelihood) -> Likelihood:
    """Give a likelihood by its name, or the function itself.

    Raises:
        ValueError: an unknown name.
    """
    if callable(likelihood):
        return likelihood
    if likelihood not in LIKELIHOODS:
        raise ValueError(
            f"likelihood must be one of {sorted(LIKELIHOODS)} or a function of (network output, "
            f"targets) that makes the observed site, got {likelihood!r}"
        )
    return LIKELIHOODS[likelihood]
