"""Likelihoods: (network output, targets) -> the observed site `y`.

Each includes every normalising constant, so that a loss is a negative log-probability in nats. All
are to be called inside a plate over the data: one batch dimension B, the datum.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
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
