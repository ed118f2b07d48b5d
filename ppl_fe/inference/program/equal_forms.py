"""Equal forms of what `torch.func` does not batch in the code of a few distributions.

They write into tensors that are not batched, or go by an autograd function of the old form, and so
would have a program run chain after chain, or draw after draw. In force only while a program runs.
One more form is not equal but right: torch draws LKJ Cholesky factors from another law than theirs
(findings/lkj_cholesky_draws_another_law.sh).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro.distributions as dist
import torch
from pyro.ops.einsum import torch_log
from torch import Tensor
from torch.overrides import TorchFunctionMode


def _multinomial_log_prob(self: Any, value: Tensor) -> Tensor:
    """Compute log n! − Σ log x_k! + Σ x_k log p_k, where 0·log 0 is 0."""
    logits: Tensor = self.logits
    powers = torch.where((value == 0) & (logits == -torch.inf), 0.0, logits) * value
    counted: Tensor = torch.lgamma(value.sum(-1) + 1) - torch.lgamma(value + 1).sum(-1)
    return counted + powers.sum(-1)


def _multinomial_sample(self: Any, sample_shape: Any = ()) -> Tensor:
    """Count the categories of n draws."""
    each = self._categorical.sample(torch.Size((self.total_count, *sample_shape)))
    kinds = torch.arange(self.probs.shape[-1], device=each.device)
    found: Tensor = (each[..., None] == kinds).sum(0).to(self.probs.dtype)
    return found


def _ordered_logistic(
    self: Any, predictor: Tensor, cutpoints: Tensor, validate_args: bool | None = None
) -> None:
    """Take differences of sigmoid(c_k − predictor), with 0 and 1 at the ends."""
    below = torch.sigmoid(cutpoints - predictor.unsqueeze(-1))
    self.predictor = predictor.expand(below.shape[:-1])
    self.cutpoints = cutpoints.expand(below.shape)
    between = below[..., 1:] - below[..., :-1]
    mass = torch.cat([below[..., :1], between, 1 - below[..., -1:]], -1)
    super(dist.OrderedLogistic, self).__init__(mass, validate_args=validate_args)


def _dirichlet_rsample(self: Any, sample_shape: Any = ()) -> Tensor:
    """Draw gammas, and divide them by their sum."""
    shape = self._extended_shape(torch.Size(sample_shape))
    gammas = torch._standard_gamma(self.concentration.expand(shape))
    tiny = torch.finfo(gammas.dtype).tiny
    gammas = gammas.clamp(min=tiny)
    return gammas / gammas.sum(-1, keepdim=True)


def _lkj_cholesky_sample(self: Any, sample_shape: Any = ()) -> Tensor:
    """Draw row i = 0, 1, ... in a uniform direction, 1 − L_ii² ~ Beta(i/2, η + (D − 1 − i)/2).

    The onion method of Lewandowski, Kurowicka & Joe (2009), section 3.2, which torch has with
    Beta(i − 1/2, ·).
    """
    eta, size = self.concentration[..., None], self.dim
    shape = self._extended_shape(torch.Size(sample_shape))
    row = torch.arange(1, size, dtype=eta.dtype, device=eta.device)
    below = torch._standard_gamma((row / 2).expand(*shape[:-2], size - 1))
    rest = torch._standard_gamma((eta + (size - 1 - row) / 2).expand(*shape[:-2], size - 1))
    tiny = torch.finfo(eta.dtype).tiny
    below, rest = below.clamp(min=tiny), rest.clamp(min=tiny)
    direction = torch.randn(shape, dtype=eta.dtype, device=eta.device).tril(-1)[..., 1:, :]
    length = (below / (below + rest) / direction.square().sum(-1)).sqrt()
    rows = length[..., None] * direction
    first = torch.zeros_like(rows[..., :1, :])
    diagonal = torch.cat([torch.ones_like(rest[..., :1]), (rest / (below + rest)).sqrt()], -1)
    return torch.cat([first, rows], -2) + torch.diag_embed(diagonal)


def _safe_log(x: Tensor) -> Tensor:
    """Take the logarithm, without an infinite gradient at 0."""
    return torch.where(x > 0, torch.log(torch.where(x > 0, x, 1.0)), -torch.inf)


Forms = Mapping[tuple[Any, str], Callable[..., Any]]
OF_DENSITIES: Forms = {
    (torch.distributions.Multinomial, "log_prob"): _multinomial_log_prob,
    (dist.OrderedLogistic, "__init__"): _ordered_logistic,
}
OF_SUMS: Forms = {(torch_log, "safe_log"): _safe_log}
OF_PRIORS: Forms = {(torch.distributions.LKJCholesky, "sample"): _lkj_cholesky_sample}
OF_DRAWS: Forms = {
    (dist.OrderedLogistic, "__init__"): _ordered_logistic,
    (torch.distributions.Multinomial, "sample"): _multinomial_sample,
    (torch.distributions.Dirichlet, "rsample"): _dirichlet_rsample,
}


@contextmanager
def equal_forms(forms: Forms) -> Iterator[None]:
    """Put other methods in place of those of distributions, for the time of a block.

    Example:
        >>> with equal_forms(OF_DENSITIES):
        ...     law = dist.Multinomial(3, probs=torch.tensor([0.5, 0.5]))
        ...     law.log_prob(torch.tensor([1.0, 2.0])).exp()
        tensor(0.3750)
    """
    before = {place: getattr(*place) for place in forms}
    for (kind, name), form in forms.items():
        setattr(kind, name, form)
    try:
        yield
    finally:
        for (kind, name), form in before.items():
            setattr(kind, name, form)


class OutOfPlaceDraws(TorchFunctionMode):
    """Draw into new tensors: noise written into a tensor would be the same in all of a batch."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        form = _FORMS.get(getattr(func, "__name__", "")) if not given else None
        return func(*args, **given) if form is None else form(*args)


def _uniform(held: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand_like(held)


def _normal(held: Tensor, mean: float = 0.0, sd: float = 1.0) -> Tensor:
    return mean + sd * torch.randn_like(held)


def _exponential(held: Tensor, rate: float = 1.0) -> Tensor:
    return -torch.log1p(-torch.rand_like(held)) / rate


def _cauchy(held: Tensor, median: float = 0.0, scale: float = 1.0) -> Tensor:
    return median + scale * torch.tan(torch.pi * (torch.rand_like(held) - 0.5))


def _binomial(count: Tensor, probability: Tensor) -> Tensor:
    return torch.binomial(count + 0 * probability, probability + 0 * count)


_FORMS: dict[str, Callable[..., Tensor]] = {
    "uniform_": _uniform,
    "normal_": _normal,
    "exponential_": _exponential,
    "cauchy_": _cauchy,
    "binomial": _binomial,
}
