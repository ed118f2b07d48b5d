"""The Laplace/Gamma hierarchy over all weights of a network, whose scales say which to update.

    λ_i ~ Gamma(α, rate β),   w_i ~ Laplace(w*_i, λ_i),   y | x ~ likelihood(f(w, x))^{N̂/n}

(Kim & Hospedales 2023, BayesTune, NeurIPS). w* is the pretrained checkpoint. The paper inflates the
data's size from n to N̂: the log-likelihood counts N̂/n times, an inverse temperature of the data
term. A freshly initialised head has no pretrained value to stay near: it gets a Gaussian prior and
a site of its own.

`fe.select_parameters` runs this program under every prior but its own: gradients do not find their
way through the Laplace/Gamma hierarchy at the paper's α, so that posterior is drawn exactly, by an
engine of its own (`ppl_fe.finetuning.bayestune`). tests/models/test_priors.py holds the two
together: the engine's density of a weight is this program's with the scale summed out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .likelihoods import Likelihood, find_likelihood, observe
from .localized import Inputs, checked_anchor
from .priors import DEFAULT_PRIOR, PRIOR_EXAMPLE, require_positive

Prior = Callable[[Tensor], Tensor]


class Head(NamedTuple):
    """Places in the vector: of the pretrained weights, of the head's, and back into order."""

    pretrained: Tensor
    fresh: Tensor
    order: Tensor


@dataclass(frozen=True)
class BayesTunePosterior:
    """The Pyro program of (inputs, targets); made by `bayestune_posterior`."""

    network: Callable[..., Any]
    anchor: Tensor
    likelihood: Likelihood
    prior: Prior
    batch_size: int | None
    num_data: int | None
    data_size: float | None
    head: Head | None
    head_precision: float

    def __call__(self, inputs: Inputs, targets: Tensor) -> Tensor:
        """Sample the prior's sites and `head`, and observe the likelihood's inside plate `data`.

        Returns the whole vector (D,): `w` and, at their places, the weights of the head.
        """
        vector = self.draw_weights()
        n = self.num_data or len(targets)
        whole = len(targets) == n
        size = min(self.batch_size or n, n) if whole else len(targets)
        with pyro.plate("data", n, subsample_size=size):
            batch, answers = (
                (_subsample(inputs), _subsample(targets)) if whole else (inputs, targets)
            )
            output = self.network(vector, batch)
            observe(self.likelihood, output, answers, (self.data_size or n) / n)
        return vector

    def draw_weights(self) -> Tensor:
        """Sample from the prior alone: w about the anchor, and the head about zero.

        Raises:
            TypeError: the prior does not return weights, one for each of the anchor's.
        """
        if self.head is None:
            return self._draw_about(self.anchor)
        pretrained = self._draw_about(self.anchor[self.head.pretrained])
        centre = torch.zeros_like(self.anchor[self.head.fresh])
        fresh = pyro.sample("head", dist.Normal(centre, self.head_precision**-0.5).to_event(1))
        return torch.cat([pretrained, fresh])[self.head.order]

    def _draw_about(self, anchor: Tensor) -> Tensor:
        w: Any = self.prior(anchor)  # another's function, which may end without a return
        if isinstance(w, Tensor) and w.shape == anchor.shape:
            return w
        given = f"a tensor of shape {tuple(w.shape)}" if isinstance(w, Tensor) else repr(w)
        raise TypeError(
            f"prior must return the site 'w', a tensor of shape {tuple(anchor.shape)}, got "
            f"{given}; for example {PRIOR_EXAMPLE}"
        )


def bayestune_posterior(
    network: Any,
    likelihood: str | Likelihood = "categorical",
    prior: Prior = DEFAULT_PRIOR,
    batch_size: int | None = 256,
    num_data: int | None = None,
    data_size: float | None = None,
    head: Sequence[slice] = (),
    head_precision: float = 1.0,
) -> BayesTunePosterior:
    """Make the posterior of a fine-tuned network's weights and their scales, a Pyro program.

    Args:
        network: a `FlatNetwork`, or any function of (vector (D,), inputs) with an `anchor` (D,).
        likelihood: "categorical", "normal", "next_token" or a function (see `likelihoods`).
        prior: called with the anchor, samples and returns the site `w`; `LaplaceGamma()` by
            default, other ones in `priors`.
        batch_size: B, minibatch of the plate; None or anything above n means all the data.
        num_data: n, where the program will be called with minibatches of a larger data set.
        data_size: N̂ > 0, what the data count for; n by default, which is Bayes' rule. The
            paper's 1e12 is close to temperature zero.
        head: slices of the vector that have no pretrained value (`network.slices[name]`); `w` is
            then the rest of the vector, in order.
        head_precision: of the head's Normal(0, 1/√precision), in 1/weight².

    Raises:
        ValueError: N̂, B, n or the precision not positive; an unknown likelihood; NaN in the
            anchor; a head that is the whole vector.

    Example:
        >>> class Line:
        ...     anchor = torch.zeros(2)
        ...     def __call__(self, w, x):
        ...         return w[0] + w[1] * x
        >>> model = bayestune_posterior(Line(), "normal", data_size=1e3, head=[slice(0, 1)])
        >>> model(torch.arange(5.0), torch.arange(5.0)).shape
        torch.Size([2])
    """
    require_positive("head_precision", head_precision)
    if data_size is not None:
        require_positive("data_size", data_size)
    anchor = checked_anchor(network, batch_size, num_data)
    fresh = torch.zeros(len(anchor), dtype=torch.bool, device=anchor.device)
    for part in head:
        fresh[part] = True
    if fresh.all():
        raise ValueError("head covers the whole vector: no pretrained weight is left to select")
    return BayesTunePosterior(
        network,
        anchor,
        find_likelihood(likelihood),
        prior,
        batch_size,
        num_data,
        data_size,
        _head(fresh) if fresh.any() else None,
        head_precision,
    )


def _head(fresh: Tensor) -> Head:
    pretrained_places, fresh_places = (torch.nonzero(part)[:, 0] for part in (~fresh, fresh))
    return Head(
        pretrained_places, fresh_places, torch.cat([pretrained_places, fresh_places]).argsort()
    )


def _subsample(values: Any) -> Any:
    if isinstance(values, Tensor):
        return pyro.subsample(values, event_dim=values.dim() - 1)
    return {name: _subsample(value) for name, value in values.items()}
