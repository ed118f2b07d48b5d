"""The ways to score parameters behind `select_parameters`, each brought to one form."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_fe.data.sources import LoaderData, TensorData
from ppl_fe.diverged import DivergedError
from ppl_fe.finetuning.bayestune.grouped import GroupScaleChains
from ppl_fe.finetuning.bayestune.scale_chains import ScaleChains, run_chains
from ppl_fe.finetuning.custom_prior import custom_prior as other_priors
from ppl_fe.finetuning.flat_weights import WorkingCopy
from ppl_fe.finetuning.objective import Objective
from ppl_fe.finetuning.rules import simple_rules as rules
from ppl_fe.finetuning.rules.released_recipe import DATA_SIZE, LEARNING_RATE, PaperRecipe, Recipe
from ppl_fe.finetuning.sampling_plan import Plan
from ppl_fe.finetuning.threshold import outside
from ppl_fe.models.bayestune import Prior
from ppl_fe.models.likelihoods import Likelihood
from ppl_fe.models.priors import laplace_gamma
from ppl_fe.networks.flat import FlatNetwork

LARGE_SHARE = 0.01


class Task(NamedTuple):
    """A network, what it is fitted to, and its fresh head: prefix and names of tensors."""

    network: FlatNetwork
    source: TensorData | LoaderData
    objective: Objective
    likelihood: str | Likelihood
    head: str | None
    head_names: tuple[str, ...]

    @property
    def head_slices(self) -> list[slice]:
        """The head's places in the vector."""
        return [self.network.slices[name] for name in self.head_names]


class Scores(NamedTuple):
    """What a rule found, (D,) each, as in `Selection`; the head's entries mean nothing.

    `what` names the quantities whose posterior means they are, where `r_hat` is measured.
    """

    score: Tensor
    scale_mean: Tensor | None = None
    scale_sd: Tensor | None = None
    r_hat: Tensor | None = None
    mcse: Tensor | None = None
    probability_in_top: Tensor | None = None
    settings: Mapping[str, Any] = {}
    notes: tuple[str, ...] = ()
    what: str = "the scales"


def langevin(task: Task, prior: Prior, plan: Plan, *, progress_bar: bool) -> Scores:
    """Scales of the stated posterior, by `ScaleChains`, or under another prior by the engine."""
    known = gamma_prior(prior)
    settings: dict[str, Any] = {**vars(plan)}
    if known is None:
        return _other(task, prior, plan, settings, progress_bar=progress_bar)
    network = task.network
    kind = ScaleChains if plan.groups is None else GroupScaleChains
    chains = kind(network, task.objective, task.source, *known, plan, task.head_slices)
    try:
        shortened = run_chains(chains, progress_bar=progress_bar)
    except DivergedError as error:
        before = None if chains.moments is None else chains.per_weight(chains.moments.so_far())
        advice = "" if plan.step_size == "auto" else f"; lower step_size={plan.step_size:g}"
        raise DivergedError(f"stage 1, {error}{advice}", scale_mean=before) from error
    assert chains.moments is not None
    mean, sd, r_hat, mcse = (
        None if values is None else _without(chains.per_weight(values), task.head_slices)
        for values in chains.moments.summary()
    )
    assert mean is not None
    counts = None
    if chains.counts is not None:
        counts = chains.per_weight(chains.counts) / chains.moments.num_draws
        counts = _without(counts, task.head_slices)
    settings |= {"alpha": known[0], "beta": known[1], "step_size": chains.step_size}
    notes = []
    if shortened:
        notes.append(
            "loss or gradient overflowed at the step chosen by the stiffness at the anchor; all "
            f"chains ran at {chains.shorter:.0f} times shorter ones, and may want more of them"
        )
    if chains.clamped > LARGE_SHARE:
        notes.append(
            f"{100 * chains.clamped:.3g} % of the weights are stiffer than the step size "
            f"{chains.step_size:.2g} bears; their scales come out too large: lower step_size"
        )
    return Scores(mean, mean, sd, r_hat, mcse, counts, settings, tuple(notes))


def paper(
    task: Task,
    prior: Prior,
    plan: Plan,
    data_size: float | None,
    learning_rate: float | None,
    *,
    progress_bar: bool,
) -> Scores:
    """The released recipe, with the lengths and the seed of a plan."""
    known = gamma_prior(prior)
    if known is None:
        raise ValueError("method='paper' has the prior laplace_gamma; give that or another method")
    recipe = Recipe(
        plan.warmup_steps, plan.num_samples, plan.thinning, *known, data_size or DATA_SIZE,
        learning_rate or LEARNING_RATE, plan.batch_size, plan.seed,
    )  # fmt: skip
    try:
        made = PaperRecipe(task.network, task.objective, task.source, recipe)
        mean, sd = made.run(progress_bar=progress_bar)
    except DivergedError as error:
        raise DivergedError(f"the paper's recipe: {error}; lower learning_rate") from error
    mean, sd = (_without(values, task.head_slices) for values in (mean, sd))
    note = "the released code's recipe: its scales are not those of the stated posterior"
    return Scores(mean, mean, sd, settings=vars(recipe), notes=(note,))


def by_rule(
    task: Task,
    method: str,
    plan: Plan,
    num_steps: int,
    learning_rate: float | None,
    *,
    progress_bar: bool,
) -> Scores:
    """A score of `rules`."""
    network, size, seed = task.network, plan.batch_size, plan.seed
    settings: dict[str, Any] = {"batch_size": size}
    if method == "gradient_squared":
        try:
            score = rules.gradient_squared(network, task.objective, task.source, size, seed)
        except DivergedError as error:
            raise DivergedError(f"gradient_squared: {error}") from error
    elif method == "movement":
        settings |= {"num_steps": num_steps, "learning_rate": learning_rate}
        score = rules.movement(
            network,
            task.source,
            task.likelihood,
            head=task.head,
            num_steps=num_steps,
            learning_rate=learning_rate,
            batch_size=size,
            seed=seed,
            progress_bar=progress_bar,
        )
    else:
        settings = {}
        score = {
            "magnitude": lambda: rules.magnitude(network),
            "bias_only": lambda: rules.biases(network),
            "random": lambda: rules.random(network, seed),
        }[method]()
    return Scores(_without(score, task.head_slices), settings=settings)


def gamma_prior(prior: Prior) -> tuple[float, float] | None:
    """(α, β) of `laplace_gamma` or a `functools.partial` of it, None of any other prior.

    Raises:
        TypeError: no prior at all.
        ValueError: scales for groups of weights.

    Example:
        >>> gamma_prior(partial(laplace_gamma, alpha=0.5))
        (0.5, 100.0)
    """
    other_priors.check_prior(prior)
    given = dict(prior.keywords) if isinstance(prior, partial) else {}
    function = prior.func if isinstance(prior, partial) else prior
    if function is not laplace_gamma:
        return None
    if given.pop("groups", None) is not None:
        raise ValueError(
            "prior: laplace_gamma with groups is for programs of your own; give groups='layer' or "
            "'row' to select_parameters itself"
        )
    return float(given.get("alpha", 0.01)), float(given.get("beta", 100.0))


def _other(
    task: Task, prior: Prior, plan: Plan, settings: dict[str, Any], *, progress_bar: bool
) -> Scores:
    if plan.scale == "expected" or plan.top is not None or plan.groups is not None:
        raise ValueError(
            "method='collapsed' and count_top are of the prior laplace_gamma alone, and so are "
            "groups; leave them out"
        )
    module = WorkingCopy(task.network, task.objective).module
    task.objective.check(module, task.source)
    found = other_priors.sample_scales(
        task.network, task.source, task.likelihood, prior, plan, task.head_slices,
        progress_bar=progress_bar,
    )  # fmt: skip
    moments = found.moments
    placed = [
        _placed(values, task) for values in (moments.mean, moments.sd, moments.r_hat, moments.mcse)
    ]
    mean, sd, r_hat, mcse = placed
    settings |= {
        "prior": other_priors.prior_name(prior), "score": found.score, "step_size": found.step_size,
    }  # fmt: skip
    notes = (f"scores are posterior means of {found.score}",)
    if found.score == "scale":
        return Scores(mean, mean, sd, r_hat, mcse, None, settings, notes)
    return Scores(mean, None, None, r_hat, mcse, None, settings, notes, what=found.score)


def _without(values: Tensor, head: list[slice]) -> Tensor:
    values = values.clone() if head else values
    for where in head:
        values[where] = float("nan")
    return values


def _placed(values: Tensor, task: Task) -> Tensor:
    anchor = task.network.anchor
    whole = torch.full_like(anchor, float("nan"))
    whole[outside(task.network.slices, task.head_names)] = values.to(anchor)
    return whole
