"""Stage 1 under any prior: the whole Pyro program through the engine, for small networks.

Only the Laplace/Gamma hierarchy has the exact steps of `scale_chains`. Any other prior is sampled
by BAOAB on `bayestune_posterior(prior=...)`, all its sites together and all chains side by side,
from the starts and in the coordinates of `prior_starts`. By default every step takes all the data
and there are 7,000 steps a chain (`scale_plan`): 15 s for 50 weights and 300 rows on one core, 30 s
for 2,000 and 600. A DataLoader or a batch size brings minibatch noise back, which makes the steps
of a prior with sharp scales too short to get anywhere.

No coordinates help where there are several modes, as of hidden units that can take each other's
part. R-hat tells.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_fe.data.sources import LoaderData, TensorData
from ppl_fe.finetuning.custom_prior.variational_starts import settle
from ppl_fe.finetuning.sampling_plan import Plan
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.record.running_moments import RunningMoments
from ppl_fe.inference.record.split_statistics import MomentSummary
from ppl_fe.inference.samplers import BAOAB
from ppl_fe.inference.sampling import sample
from ppl_fe.models.bayestune import BayesTunePosterior, Prior, bayestune_posterior
from ppl_fe.models.centring import held, site_values
from ppl_fe.models.likelihoods import Likelihood
from ppl_fe.models.priors import PRIOR_EXAMPLE
from ppl_fe.networks.flat import FlatNetwork

MOST_VALUES = 10**7  # of a site's draws; the engine keeps no more of them whole


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
        DivergedError: no chain stayed finite.
    """
    size = network.num_parameters - sum(part.stop - part.start for part in head)
    if plan.num_chains * plan.num_samples * size > MOST_VALUES:
        raise ValueError(
            f"prior: {plan.num_chains} chains of {plan.num_samples} draws of {size} weights are "
            f"more than {MOST_VALUES:.0e} numbers; only laplace_gamma goes through large networks. "
            "Lower num_samples or num_chains"
        )

    def make(own: Prior) -> BayesTunePosterior:
        return bayestune_posterior(
            network,
            likelihood,
            own,
            batch_size=plan.batch_size,
            num_data=source.num_data,
            data_size=plan.data_size,
            head=head,
            head_precision=plan.head_precision,
        )

    args = source.first() if isinstance(source, LoaderData) else (source.inputs, source.targets)
    sites = {site.name: site for site in Density(make(prior), args, {}).sites}
    if "w" not in sites or sites["w"].size != size:
        raise ValueError(
            f"prior must sample the site 'w' of shape ({size},), its sites are {list(sites)}; "
            f"write the like of {PRIOR_EXAMPLE}"
        )
    try:
        settled = settle(make, prior, args, plan.num_chains, plan.seed)
    except NotImplementedError as error:
        raise ValueError(
            "prior must be of laws that can be drawn from, which an improper one cannot; write the "
            f"like of {PRIOR_EXAMPLE}"
        ) from error
    draws = sample(
        BAOAB(settled.program, step_size=plan.step_size),
        *([source] if isinstance(source, LoaderData) else args),
        num_samples=plan.num_samples,
        warmup_steps=plan.warmup_steps,
        thinning=plan.thinning,
        num_chains=plan.num_chains,
        initial_params=settled.start,
        seed=plan.seed,
        progress_bar=progress_bar,
    )
    posterior = draws["posterior"]
    has_scales = "scale" in sites and sites["scale"].size == size
    if has_scales:
        values = torch.as_tensor(posterior["scale"].to_numpy())
    else:
        program = settled.program
        anchor = network.anchor if program.head is None else network.anchor[program.head.pretrained]
        values = (_weights(program, posterior, anchor) - anchor).abs().cpu()
    moments = RunningMoments(*_sizes(values), dtype=values.dtype, device="cpu")
    for k in range(values.shape[1]):
        moments.add(values[:, k])
    step_size = float(np.max(draws.attrs["tuned_step_size"]))
    return OtherScales("scale" if has_scales else "|w - anchor|", moments.summary(), step_size)


def _weights(program: BayesTunePosterior, posterior: Any, anchor: Tensor) -> Tensor:
    """(C, S, D); run through the prior again where its coordinates are others."""
    sites = {name: torch.as_tensor(found.to_numpy()) for name, found in posterior.items()}
    if "w" in sites:
        return sites["w"].to(anchor)
    chains, count = next(iter(sites.values())).shape[:2]
    each = [
        site_values(
            partial(held(program.prior, {n: v[c, k].to(anchor) for n, v in sites.items()}), anchor)
        )["w"]
        for c in range(chains)
        for k in range(count)
    ]
    return torch.stack(each).reshape(chains, count, -1)


def _sizes(values: Tensor) -> tuple[int, int, int]:
    chains, draws, size = values.shape
    return chains, size, draws
