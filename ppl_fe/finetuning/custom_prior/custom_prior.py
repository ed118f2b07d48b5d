"""Stage 1 under any prior: the whole Pyro program through the engine, for small networks.

Only the Laplace/Gamma hierarchy has the exact steps of `ppl_fe.finetuning.bayestune`. Any other
prior is sampled by BAOAB on `bayestune_posterior(prior=...)`, all its sites together and all chains
side by side, from the starts and in the coordinates of `variational_starts`. By default every step
takes all the data and there are 7,000 steps a chain: 15 s for 50 weights and 300 rows on one core,
30 s for 2,000 and 600. A DataLoader or a batch size brings minibatch noise back, which makes the
steps of a prior with sharp scales too short to get anywhere.

No coordinates help where there are several modes, as where hidden units are interchangeable; R-hat
is large then.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_fe.data.sources import LoaderData
from ppl_fe.finetuning.custom_prior.variational_starts import Settled, settle
from ppl_fe.finetuning.flat_weights import WorkingCopy
from ppl_fe.finetuning.sampling_plan import SamplingPlan
from ppl_fe.finetuning.scoring import Scores, Task
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.record.running_moments import RunningMoments
from ppl_fe.inference.samplers import BAOAB
from ppl_fe.inference.sampling import sample
from ppl_fe.models.bayestune import BayesTunePosterior, Prior, bayestune_posterior
from ppl_fe.models.centring import held, site_values
from ppl_fe.models.priors import PRIOR_EXAMPLE, LaplaceGamma, laplace_gamma
from ppl_fe.ranks import share_of
from ppl_fe.renamed import warn_of_old_name

MOST_VALUES = 10**7  # of a site's draws; the engine keeps no more of them whole


def check_prior(prior: object) -> Prior:
    """Refuse what cannot be called with the anchor alone; read former spellings of `LaplaceGamma`.

    Raises:
        TypeError: no function, or one of other arguments.
        ValueError: `LaplaceGamma` with groups.

    Example:
        >>> check_prior(LaplaceGamma(alpha=0.5))
        LaplaceGamma(alpha=0.5, beta=100)
    """
    if not callable(prior) or hasattr(prior, "log_prob"):
        raise TypeError(
            f"prior must be a function of the anchor, got a {type(prior).__name__}; for example "
            f"{PRIOR_EXAMPLE}"
        )
    try:
        inspect.signature(prior).bind("the anchor")
    except (TypeError, ValueError) as error:
        if isinstance(error, ValueError) and not isinstance(prior, partial):
            return prior  # a function whose arguments cannot be read
        raise TypeError(
            f"prior must be a function of the anchor alone: {error}; give the other arguments by "
            f"functools.partial(prior, name=value), for example {PRIOR_EXAMPLE}"
        ) from error
    found = _of_old_spelling(prior)
    if isinstance(found, LaplaceGamma) and found.groups is not None:
        raise ValueError(
            "prior: LaplaceGamma with groups is for programs of your own; here give "
            "groups='layer' or 'row' to BayesTune itself"
        )
    return found


def _of_old_spelling(prior: Prior) -> Prior:
    """Turn `laplace_gamma`, or a partial of it, into `LaplaceGamma`; leave any other prior."""
    function, given = (prior.func, prior.keywords) if isinstance(prior, partial) else (prior, {})
    if function is not laplace_gamma:
        return prior
    warn_of_old_name("prior=laplace_gamma", "fe.models.LaplaceGamma(alpha, beta)")
    return LaplaceGamma(**given)


def prior_name(prior: object) -> str:
    """Name a prior, whatever arguments it was given before.

    Example:
        >>> prior_name(partial(check_prior, prior=None))
        'check_prior'
    """
    function = prior.func if isinstance(prior, partial) else prior
    return str(getattr(function, "__name__", type(function).__name__))


def sample_scales(task: Task, prior: Prior, plan: SamplingPlan) -> Scores:
    """Score by the posterior mean of the site `scale` if it is one a weight, else of |w − anchor|.

    Raises:
        ValueError: more draws times weights than 10⁷; a prior without the site `w`, or one that
            cannot be sampled.
        TypeError: a prior that does not return weights.
        FloatingPointError: no chain stayed finite.
    """
    task.objective.check(WorkingCopy(task.network, task.objective).module, task.source)
    size = int(task.ranked.sum())
    if plan.num_chains * plan.num_samples * size > MOST_VALUES:
        raise ValueError(
            f"prior: {plan.num_chains} chains of {plan.num_samples} draws of {size} weights are "
            f"more than {MOST_VALUES:.0e} numbers; only LaplaceGamma goes through large networks. "
            "Lower num_samples or num_chains"
        )
    source = task.source
    args = source.first() if isinstance(source, LoaderData) else (source.inputs, source.targets)
    settled, has_scales = _settled(task, prior, plan, args)
    draws = sample(
        BAOAB(settled.program, step_size=plan.step_size),
        *([source] if isinstance(source, LoaderData) else args),
        num_samples=plan.num_samples,
        warmup_steps=plan.warmup_steps,
        thinning=plan.thinning,
        num_chains=plan.num_chains,
        initial_params=settled.start,
        seed=plan.seed,
        progress_bar=task.progress_bar,
    )
    posterior = draws["posterior"]
    if has_scales:
        values = torch.as_tensor(posterior["scale"].to_numpy())
    else:
        anchor = task.network.anchor[task.ranked]
        values = (_weights(settled.program, posterior, anchor) - anchor).abs().cpu()
    what = "scale" if has_scales else "|w - anchor|"
    settings = {"prior": prior_name(prior), "score": what}
    step_size = float(np.max(draws.attrs["tuned_step_size"]))
    return _scores(task, plan, values, {**vars(plan), **settings, "step_size": step_size})


def _settled(
    task: Task, prior: Prior, plan: SamplingPlan, args: Sequence[Any]
) -> tuple[Settled, bool]:
    """Make the posterior and its starts; say whether its site `scale` holds one a weight."""

    def make(own: Prior) -> BayesTunePosterior:
        return bayestune_posterior(
            task.network,
            task.likelihood,
            own,
            batch_size=_share(task, plan.batch_size),
            num_data=task.source.num_data,
            data_size=plan.data_size,
            head=task.head_slices,
            head_precision=plan.head_precision,
        )

    size = int(task.ranked.sum())
    sizes = {site.name: site.size for site in Density(make(prior), args, {}).sites}
    if sizes.get("w") != size:
        raise ValueError(
            f"prior must sample the site 'w' of shape ({size},), its sites are {list(sizes)}; "
            f"for example {PRIOR_EXAMPLE}"
        )
    try:
        settled = settle(make, prior, args, plan.num_chains, plan.seed)
    except NotImplementedError as error:
        raise ValueError(
            "prior must be of laws that can be drawn from, which an improper one cannot; for "
            f"example {PRIOR_EXAMPLE}"
        ) from error
    return settled, sizes.get("scale") == size


def _share(task: Task, batch_size: int) -> int:
    """Give each rank's rows of a minibatch; a loader's are shared out as they come."""
    in_memory = not isinstance(task.source, LoaderData)
    return share_of(batch_size, task.source.num_data) if in_memory else batch_size


def _scores(task: Task, plan: SamplingPlan, values: Tensor, settings: dict[str, Any]) -> Scores:
    """Put the moments of values (C, S, D outside the head) at their places in the vector."""
    chains, draws, size = values.shape
    moments = RunningMoments(chains, size, draws, dtype=values.dtype, device="cpu")
    for k in range(draws):
        moments.add(values[:, k])
    found, anchor = moments.summary(), task.network.anchor

    def placed(part: Tensor) -> Tensor:
        whole = torch.full_like(anchor, float("nan"))
        whole[task.ranked] = part.to(anchor)
        return whole

    mean, what = placed(found.mean), str(settings["score"])
    of_scales = what == "scale"
    remedy = plan.remedy
    if plan.batch_size < task.source.num_data:
        # Every site of such a prior feels the noise of minibatches; the steps become tiny.
        remedy = f"take all the data in every step (batch_size=None), or {remedy}"
    return Scores(
        score=mean,
        scale_mean=mean if of_scales else None,
        scale_sd=placed(found.sd) if of_scales else None,
        r_hat=placed(found.r_hat),
        mcse=placed(found.mcse),
        settings=settings,
        notes=(f"scores are posterior means of {what}",),
        what="the scales" if of_scales else what,
        remedy=remedy,
    )


def _weights(program: BayesTunePosterior, posterior: Any, anchor: Tensor) -> Tensor:
    """Give the weights (C, S, D), by the prior again where its coordinates are others."""
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
