"""Priors over a network's weights: anchor (D,) -> the site `w` (D,).

Each is called with the anchor and samples and returns the site `w`; where weights have scales,
those are the site `scale`. BayesTune's own, `LaplaceGamma`, is a value with its hyperparameters in
it, so that what knows it can recognise it; the others are functions. One of your own, for example:

    def student(anchor):
        return pyro.sample("w", dist.StudentT(4.0, anchor, 1e-3).to_event(1))
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, log

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

# For messages about priors that are none.
PRIOR_EXAMPLE = (
    '`def prior(anchor): return pyro.sample("w", dist.StudentT(4.0, anchor, 0.1).to_event(1))`'
)


def require_positive(name: str, value: float) -> None:
    """Refuse anything but a positive finite number.

    It stands here and not in `ppl_fe.arguments` because models import no other part of the library.

    Raises:
        TypeError: no number.
        ValueError: zero, negative or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, float | int):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not (isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive number, got {value}")


def gaussian(anchor: Tensor, precision: float | Tensor = 1.0) -> Tensor:
    """Sample w ~ Normal(anchor, 1/√precision), normalised: the localiser of the free energy.

    log p(w) = ½ D log(precision/2π) − ½ precision ‖w − anchor‖².

    Example:
        >>> import torch
        >>> gaussian(torch.zeros(3), precision=4.0).shape
        torch.Size([3])
    """
    w: Tensor = pyro.sample("w", dist.Normal(anchor, precision**-0.5).to_event(1))
    return w


@dataclass(frozen=True)
class LaplaceGamma:
    """w_i ~ Laplace(anchor_i, λ_i), λ_i ~ Gamma(α, rate β) (Kim & Hospedales, NeurIPS 2023).

    Call it with the anchor inside a Pyro program. `fe.select_parameters` does not run that program:
    it recognises the prior by its type and draws from the same posterior exactly, scale by scale
    (`ppl_fe.finetuning.bayestune`), which gradients cannot at α below about a half.

    The latent site is `log_scale`; `scale` is its exponential, a deterministic site. At α = 0.01
    log λ has a standard deviation of 100, so λ itself underflows in most draws from the prior
    while log λ is an ordinary number; neither density here needs λ where it is tiny. w is sampled
    about the anchor, not made of λ times a unit variable, so that it is a site like that of every
    other prior, and because the data of a weight worth selecting say more of it than the prior.

    Args:
        alpha: shape of the Gamma, 0.01 by default as in the paper: most weights stay where they
            are.
        beta: its rate in 1/weight, 100 by default as in the paper: a mean scale α/β of 1e-4.
        groups: (D,) integers from 0 to G − 1: one scale for each group (a layer, a row of a
            matrix) instead of one for each weight, which is the default.

    Raises:
        ValueError: α or β is not a positive number.

    Example:
        >>> prior = LaplaceGamma(alpha=0.5)
        >>> prior
        LaplaceGamma(alpha=0.5, beta=100)
        >>> prior(torch.zeros(3)).shape
        torch.Size([3])
    """

    alpha: float = 0.01
    beta: float = 100.0
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        require_positive("alpha", self.alpha)
        require_positive("beta", self.beta)

    def __call__(self, anchor: Tensor) -> Tensor:
        """Sample `log_scale` (D,) or (G,), record `scale` beside it, and return `w` (D,)."""
        count = len(anchor) if self.groups is None else int(self.groups.max()) + 1
        law = LogGamma(anchor.new_full((count,), self.alpha), anchor.new_full((count,), self.beta))
        log_scale = pyro.sample("log_scale", law.to_event(1))
        pyro.deterministic("scale", log_scale.exp(), event_dim=1)
        own = log_scale if self.groups is None else log_scale[self.groups]
        w: Tensor = pyro.sample("w", LaplaceOfLogScale(anchor, own).to_event(1))
        return w

    def __repr__(self) -> str:
        grouped = "" if self.groups is None else f", groups={tuple(self.groups.shape)}"
        return f"LaplaceGamma(alpha={self.alpha:g}, beta={self.beta:g}{grouped})"


DEFAULT_PRIOR = LaplaceGamma()


def laplace_gamma(
    anchor: Tensor,
    alpha: float = LaplaceGamma.alpha,
    beta: float = LaplaceGamma.beta,
    groups: Tensor | None = None,
) -> Tensor:
    """Run `LaplaceGamma(alpha, beta, groups)`: the former spelling, for one release.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", DeprecationWarning)
        ...     laplace_gamma(torch.zeros(3), alpha=0.5).shape
        torch.Size([3])
    """
    warnings.warn(
        "laplace_gamma is on its way out: use fe.models.LaplaceGamma(alpha, beta), which is called "
        "with the anchor in the same way",
        DeprecationWarning,
        stacklevel=2,
    )
    return LaplaceGamma(alpha, beta, groups)(anchor)


def horseshoe(anchor: Tensor, global_scale: float = 1e-3) -> Tensor:
    """Sample w_i ~ Normal(anchor_i, τ λ_i), λ_i ~ HalfCauchy(1), τ ~ HalfCauchy(global_scale).

    Carvalho, Polson & Scott (2010). Sites `tau` (), `scale` (D,) for the λ_i, and `w`.

    Example:
        >>> horseshoe(torch.zeros(3)).shape
        torch.Size([3])
    """
    tau = pyro.sample("tau", dist.HalfCauchy(anchor.new_tensor(global_scale)))
    local = pyro.sample("scale", dist.HalfCauchy(torch.ones_like(anchor)).to_event(1))
    w: Tensor = pyro.sample("w", dist.Normal(anchor, tau * local).to_event(1))
    return w


def student_t(anchor: Tensor, degrees_of_freedom: float = 4.0, scale: float = 1e-3) -> Tensor:
    """Sample w ~ anchor + scale · t_ν: Gaussian with heavier tails, no further site.

    Example:
        >>> student_t(torch.zeros(3)).shape
        torch.Size([3])
    """
    law = dist.StudentT(anchor.new_tensor(degrees_of_freedom), anchor, scale)
    w: Tensor = pyro.sample("w", law.to_event(1))
    return w


def gaussian_scale_mixture(
    anchor: Tensor, scales: Sequence[float] = (1e-4, 1e-2), shares: Sequence[float] = (0.9, 0.1)
) -> Tensor:
    """Sample w_i ~ Σ_k share_k Normal(anchor_i, scale_k): spike and slab, the choice summed out.

    Blundell et al. (2015). Shares are normalised; no further site.

    Example:
        >>> gaussian_scale_mixture(torch.zeros(3)).shape
        torch.Size([3])
    """
    choice = dist.Categorical(anchor.new_tensor(shares).expand(len(anchor), -1))
    each = dist.Normal(anchor[:, None], anchor.new_tensor(scales))
    w: Tensor = pyro.sample("w", _RealMixture(choice, each).to_event(1))
    return w


class _RealMixture(dist.MixtureSameFamily):  # its own support is one that nothing can transform
    support = constraints.real


class LogGamma(TorchDistribution):
    """The logarithm s of a Gamma(α, rate β) variable, also where its exponential underflows.

    log p(s) = α(s + log β) − β eˢ − log Γ(α). Drawn as log G + (log U)/α, G ~ Gamma(α + 1, β).

    Example:
        >>> LogGamma(torch.tensor(2.0), torch.tensor(1.0)).log_prob(torch.tensor(0.0))
        tensor(-1.)
    """

    arg_constraints = {"alpha": constraints.positive, "beta": constraints.positive}  # noqa: RUF012
    support = constraints.real
    has_rsample = True

    def __init__(self, alpha: Tensor, beta: Tensor, validate_args: bool | None = None) -> None:
        self.alpha, self.beta = alpha.expand_as(beta), beta
        super().__init__(self.alpha.shape, validate_args=validate_args)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw, differentiably in α and β."""
        shape = self.shape(torch.Size(sample_shape))
        boosted = torch.distributions.Gamma(self.alpha + 1, self.beta).rsample(
            torch.Size(sample_shape)
        )
        exponential = torch.empty(shape).to(self.alpha).exponential_()
        drawn: Tensor = boosted.log() - exponential / self.alpha
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        """Give the log density at s."""
        normaliser = self.alpha * self.beta.log() - torch.lgamma(self.alpha)
        density: Tensor = normaliser + self.alpha * value - self.beta * value.exp()
        return density


class LaplaceOfLogScale(TorchDistribution):
    """Laplace(location, eˢ) for any s: log p(w) = −log 2 − s − exp(log|w − location| − s).

    Where eˢ underflows, a weight at its location still has a density and any other has none.
    """

    arg_constraints = {"loc": constraints.real, "log_scale": constraints.real}  # noqa: RUF012
    support = constraints.real
    has_rsample = True

    def __init__(self, loc: Tensor, log_scale: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.log_scale = loc, log_scale.expand_as(loc)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw, differentiably in location and log scale."""
        unit = torch.distributions.Laplace(torch.zeros_like(self.loc), 1.0).rsample(
            torch.Size(sample_shape)
        )
        drawn: Tensor = self.loc + self.log_scale.exp() * unit
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        """Give the log density at w."""
        distance = (value - self.loc).abs()
        moved = distance > 0
        # At distance 0 the gradient must not meet log 0 or an overflow: two selections.
        log_distance = torch.where(moved, distance, 1.0).log()
        exponent = torch.where(moved, log_distance - self.log_scale, -torch.inf)
        density: Tensor = -log(2) - self.log_scale - exponent.exp()
        return density
