"""Stage 1 under any prior: the whole Pyro program through the engine, for small networks.

Only the Laplace/Gamma hierarchy has the exact steps of `scale_chains`. Any other prior is sampled
by BAOAB on `bayestune_posterior(prior=...)`, all its sites together. It wants a density without
poles and with gradients that find their way; priors of a few scales, smooth about the anchor.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_fe.data.sources import LoaderData, TensorData
from ppl_fe.finetuning.scale_plan import Plan
from ppl_fe.inference.density import Density
from ppl_fe.inference.moments import MomentSummary, RunningMoments
from ppl_fe.inference.samplers import BAOAB
from ppl_fe.inference.sampling import sample
from ppl_fe.models.bayestune import Prior, bayestune_posterior
from ppl_fe.models.likelihoods import Likelihood
from ppl_fe.models.priors import PRIOR_EXAMPLE
from ppl_fe.networks.flat import FlatNetwork

MOST_VALUES = 10**7  # of a site's draws; the engine keeps no more of them whole
START = 1e-3  # distance of starts from the anchor, in weights


class OtherScales(NamedTuple):
    """`score` names what was averaged; the moments are those outside the head, in order."""

    score: str
    moments: MomentSummary
    step_size: float


def check_prior(prior: object) -> None:
    """Refuse what cannot be called with the anchor alone.

    Raises:
        TypeError: no function, or one of other arguments.

    Example:
        >>> check_prior(lambda anchor, scale=0.1: anchor)        # may be called with it alone
    """
    if not callable(prior) or hasattr(prior, "log_prob"):
        raise TypeError(
            f"prior must be a function of the anchor, got a {type(prior).__name__}; write the like "
            f"of {PRIOR_EXAMPLE}"
        )
    try:
        inspect.signature(prior).bind("the anchor")
    except (TypeError, ValueError) as error:
        if isinstance(error, ValueError) and not isinstance(prior, partial):
            return  # a function that does not tell its arguments
        raise TypeError(
            f"prior must be a function of the anchor alone: {error}; give the other arguments by "
            f"functools.partial(prior, name=value), and write the like of {PRIOR_EXAMPLE}"
        ) from error


def prior_name(prior: object) -> str:
    """What a prior is called, whatever arguments it was given before.

    Example:
        >>> prior_name(partial(check_prior, prior=None))
        'check_prior'
    """
    function = prior.func if isinstance(prior, partial) else prior
    return str(getattr(function, "__name__", type(function).__name__))


def sample_scales(
    network: FlatNetwork,
    source: TensorData | LoaderData,
    likelihood: str | Likelihood,
    prior: Prior,
    plan: Plan,
    head: list[slice],
    *,
    progress_bar: bool,
) -> OtherScales:
    """Posterior moments of the site `scale` where there is one a weight, else of |w − anchor|.

    Raises:
        ValueError: more draws times weights than 10⁷; a prior without the site `w`, or one that
            cannot be sampled.
        TypeError: a prior that does not return weights.
        FloatingPointError: no chain stayed finite.
    """
    size = network.num_parameters - sum(part.stop - part.start for part in head)
    if plan.num_chains * plan.num_samples * size > MOST_VALUES:
        raise ValueError(
            f"prior: {plan.num_chains} chains of {plan.num_samples} draws of {size} weights are "
            f"more than {MOST_VALUES:.0e} numbers; only laplace_gamma goes through large networks. "
            "Lower num_samples or num_chains"
        )
    model = bayestune_posterior(
        network,
        likelihood,
        prior,
        batch_size=plan.batch_size,
        num_data=source.num_data,
        data_size=plan.data_size,
        head=head,
        head_precision=plan.head_precision,
    )
    args = source.first() if isinstance(source, LoaderData) else (source.inputs, source.targets)
    sites = {site.name: site for site in Density(model, args, {}).sites}
    if "w" not in sites or sites["w"].size != size:
        raise ValueError(
            f"prior must sample the site 'w' of shape ({size},), its sites are {list(sites)}; "
            f"write the like of {PRIOR_EXAMPLE}"
        )
    anchor = network.anchor if model.head is None else network.anchor[model.head.pretrained]
    centres = {"w": anchor}
    if model.head is not None:
        centres["head"] = network.anchor[model.head.fresh]
    generator = torch.Generator().manual_seed(plan.seed)
    starts = {}
    for name, site in sites.items():
        noise = torch.randn((plan.num_chains, *site.shape), generator=generator).to(anchor)
        starts[name] = centres[name] + START * noise if name in centres else noise
    draws = sample(
        BAOAB(model, step_size=plan.step_size),
        *([source] if isinstance(source, LoaderData) else args),
        num_samples=plan.num_samples,
        warmup_steps=plan.warmup_steps,
        thinning=plan.thinning,
        num_chains=plan.num_chains,
        initial_params=starts,
        seed=plan.seed,
        progress_bar=progress_bar,
    )
    posterior = draws["posterior"]
    has_scales = "scale" in sites and sites["scale"].size == size
    values = torch.as_tensor(posterior["scale" if has_scales else "w"].to_numpy())
    if not has_scales:
        values = (values - anchor.cpu()).abs()
    moments = RunningMoments(*_sizes(values), dtype=values.dtype, device="cpu")
    for k in range(values.shape[1]):
        moments.add(values[:, k])
    step_size = float(np.max(draws.attrs["tuned_step_size"]))
    return OtherScales("scale" if has_scales else "|w - anchor|", moments.summary(), step_size)


def _sizes(values: Tensor) -> tuple[int, int, int]:
    chains, draws, size = values.shape
    return chains, size, draws
