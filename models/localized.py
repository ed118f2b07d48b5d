"""The localised tempered posterior, whose free energy ranks checkpoints.

    p(w) ∝ exp(−nβ L_n(w) − (γ/2)‖w − w*‖²),      L_n(w) = −(1/n) Σ_i log p(y_i | x_i, w)

(Lau et al. 2023, The local learning coefficient; Munn & Wei 2025, arXiv:2410.05612). w* is the
checkpoint, γ the localisation, β the inverse temperature; it multiplies the data log-likelihood
only, and the localiser is a normalised Gaussian. A fresh head h has no pretrained value to stay
near, and a prior of its own instead: of w = (b, h) only the backbone b is localised,

    p(b, h) ∝ exp(−nβ L_n(b, h)) N(b; b*, I/γ) N(h; 0, I/τ).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import log
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .likelihoods import Likelihood, find_likelihood, observe
from .priors import gaussian, require_positive

Inputs = Tensor | Mapping[str, Tensor]


@dataclass(frozen=True)
class LocalPosterior:
    """The Pyro program of (inputs, targets); made by `local_posterior`.

    The one place where n, β, γ and the head's prior live. `anchor` and `inverse_temperature` may be
    given in a call too, so that the chains of several checkpoints, or of a ladder of temperatures,
    run side by side. `head` marks the entries of a fresh head, (D,) bool, or is None.

    The latent site is `w` (D,). With a fresh head it is `unit` (D,) instead, the distance of w from
    the prior's mean in units of its standard deviation: backbone and head differ in scale by
    √(γ/τ), and chains that have to cross both with one step mix the slower for it.
    """

    network: Callable[..., Any]
    anchor: Tensor
    likelihood: Likelihood
    localization: float
    inverse_temperature: float | None
    batch_size: int | None
    num_data: int | None
    head: Tensor | None = None
    head_precision: float = 1.0

    def __call__(
        self,
        inputs: Inputs,
        targets: Tensor,
        anchor: Tensor | None = None,
        inverse_temperature: Tensor | None = None,
    ) -> Tensor:
        """Sample the weights, observe the likelihood's site inside the plate `data`, and give w."""
        n = self.num_data or len(targets)
        beta = self.resolved_inverse_temperature(n)
        w = self._sample_weights(self.anchor if anchor is None else anchor)
        # Minibatches of a larger data set come as they are, of whatever size.
        whole = len(targets) == n
        size = min(self.batch_size or n, n) if whole else len(targets)
        with pyro.plate("data", n, subsample_size=size):
            batch = _subsample(inputs) if whole else inputs
            answers = _subsample_tensor(targets) if whole else targets
            tempering = beta if inverse_temperature is None else inverse_temperature
            observe(self.likelihood, self.network(w, batch), answers, tempering)
        return w

    def _sample_weights(self, center: Tensor) -> Tensor:
        if self.head is None:
            return gaussian(center, self.localization)
        law = dist.Normal(torch.zeros_like(center), 1.0).to_event(1)
        return self.weights(pyro.sample("unit", law), center)

    def weights(self, position: Tensor, center: Tensor) -> Tensor:
        """Give w (..., D) of values of the latent site, about a prior's mean."""
        if self.head is None:
            return position
        precision = torch.full_like(self.anchor, self.localization)
        precision = precision.masked_fill(self.head, self.head_precision)
        return center + position * precision.rsqrt()

    def position(self, center: Tensor) -> Tensor:
        """Give the latent site's value at the prior's mean: the inverse of `weights` there."""
        return center if self.head is None else torch.zeros_like(center)

    @property
    def least_curvature(self) -> float:
        """Give the prior's curvature in the latent site, the least that −log p has anywhere."""
        return self.localization if self.head is None else 1.0

    def center(self, weights: Tensor) -> Tensor:
        """Give the prior's mean for checkpoints (..., D): their weights, and a head of zeros."""
        return weights if self.head is None else weights.masked_fill(self.head, 0.0)

    def resolved_inverse_temperature(self, num_data: int) -> float:
        """Give β, by default 1/log n.

        Raises:
            ValueError: no β was given and n is below 3.
        """
        if self.inverse_temperature is not None:
            return self.inverse_temperature
        if num_data < 3:
            raise ValueError(
                f"inverse_temperature: the default 1/log n needs n >= 3, the data have {num_data}"
            )
        return 1 / log(num_data)


def local_posterior(
    network: Any,
    likelihood: str | Likelihood = "categorical",
    localization: float = 1.0,
    inverse_temperature: float | None = None,
    batch_size: int | None = 256,
    num_data: int | None = None,
    head: str | None = None,
    head_precision: float = 1.0,
) -> LocalPosterior:
    """Make the localised tempered posterior about a network's anchor, a Pyro program.

    It is plain Pyro: it runs under `fe.sample` and under Pyro's NUTS and SVI alike.

    Args:
        network: a `FlatNetwork`, or any function of (vector (D,), inputs) with an `anchor` (D,).
        likelihood: "categorical", "normal", "next_token" or a function (see `likelihoods`).
        localization: γ > 0, in units of 1/weight².
        inverse_temperature: β > 0; default 1/log n, at which E[nL_n] is the WBIC.
        batch_size: B, minibatch of the plate; None or anything above n means all the data.
        num_data: n, where the program will be called with minibatches of a larger data set.
        head: the prefix of a fresh head's parameters, as "classifier"; none by default. Its prior
            is N(0, 1/head_precision), whatever the network holds there. Needs a `FlatNetwork`.
        head_precision: τ > 0 of that prior, 1 by default, in units of 1/weight².

    Raises:
        ValueError: γ, β, τ or B not positive; an unknown likelihood or head; NaN in the anchor.

    Example:
        >>> class Line:
        ...     anchor = torch.zeros(2)
        ...     def __call__(self, w, x):
        ...         return w[0] + w[1] * x
        >>> model = local_posterior(Line(), "normal", localization=10.0)
        >>> model(torch.arange(5.0), torch.arange(5.0)).shape
        torch.Size([2])
    """
    require_positive("localization", localization)
    require_positive("head_precision", head_precision)
    if inverse_temperature is not None:
        require_positive("inverse_temperature", inverse_temperature)
    anchor = checked_anchor(network, batch_size, num_data)
    inside = None if head is None else _entries(network, anchor, network.head_names(head))
    return LocalPosterior(
        network,
        anchor if inside is None else anchor.masked_fill(inside, 0.0),
        find_likelihood(likelihood),
        localization,
        inverse_temperature,
        batch_size,
        num_data,
        inside,
        head_precision,
    )


def _entries(network: Any, anchor: Tensor, names: tuple[str, ...]) -> Tensor:
    """Mark the entries of some of a network's tensors, (D,) bool."""
    inside = torch.zeros_like(anchor, dtype=torch.bool)
    for name in names:
        inside[network.slices[name]] = True
    return inside


def checked_anchor(network: Any, batch_size: int | None, num_data: int | None) -> Tensor:
    """Give the network's anchor (D,), once it and the sizes of the data are checked.

    Raises:
        ValueError: B or n not a positive integer; NaN or infinity in the anchor, or half precision.
    """
    for name, value in (("batch_size", batch_size), ("num_data", num_data)):
        if value is not None and (isinstance(value, bool) or int(value) != value or value < 1):
            raise ValueError(f"{name} must be a positive integer or None, got {value!r}")
    anchor: Tensor = network.anchor
    if not torch.isfinite(anchor).all():
        raise ValueError("network.anchor holds NaN or infinite weights; load another checkpoint")
    require_precision(anchor.dtype)
    return anchor


def require_precision(dtype: torch.dtype) -> None:
    """Refuse weights in half precision, and say what to give.

    Raises:
        ValueError: bfloat16, float16 or smaller. The steps of samplers and of fine-tuning are
            smaller than the distance between two numbers there, so that nothing would move.
    """
    if dtype.itemsize < torch.float32.itemsize:
        raise ValueError(
            f"network is in {dtype}, which rounds small updates away: give the module in float32, "
            "by module.float() or from_pretrained(..., dtype=torch.float32); autocast="
            "torch.bfloat16 of fe.FlatNetwork runs its products in half precision all the same"
        )


def _subsample(inputs: Inputs) -> Inputs:
    if isinstance(inputs, Mapping):
        return {name: _subsample_tensor(value) for name, value in inputs.items()}
    return _subsample_tensor(inputs)


def _subsample_tensor(values: Tensor) -> Tensor:
    part: Tensor = pyro.subsample(values, event_dim=values.dim() - 1)
    return part
