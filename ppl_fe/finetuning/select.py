"""Stage 1 of BayesTune, and what it is compared with: which parameters of a network to update."""

from __future__ import annotations

from typing import Any, Literal, get_args

from ppl_fe.arguments import require_integer
from ppl_fe.finetuning import scoring as stage_one
from ppl_fe.finetuning.objective import Objective, data_and_batch
from ppl_fe.finetuning.sampling_plan import DEFAULT_BATCH, OTHER_PRIOR, USUAL, Plan
from ppl_fe.finetuning.score_notes import chance_notes, mixing_notes
from ppl_fe.finetuning.selection import Selection
from ppl_fe.finetuning.threshold import cut, number_to_select, outside
from ppl_fe.finetuning.train.trained_entries import head_names
from ppl_fe.models.bayestune import Prior
from ppl_fe.models.likelihoods import Likelihood
from ppl_fe.models.priors import laplace_gamma
from ppl_fe.networks.flat import FlatNetwork, require_network
from ppl_fe.networks.hashes import network_hash

Method = Literal[
    "bayestune",
    "collapsed",
    "paper",
    "gradient_squared",
    "movement",
    "magnitude",
    "bias_only",
    "random",
]
METHODS = get_args(Method)
LANGEVIN = ("bayestune", "collapsed")


def select_parameters(
    network: FlatNetwork,
    data: Any,
    *,
    likelihood: str | Likelihood = "categorical",
    sparsity: float | Literal["knee"] = 0.005,
    threshold: float | None = None,
    method: Method = "bayestune",
    prior: Prior = laplace_gamma,
    groups: Literal["layer", "row"] | None = None,
    data_size: float | None = None,
    head: str | None = None,
    num_chains: int = 2,
    num_samples: int = 100,
    warmup_steps: int | None = None,
    thinning: int | None = None,
    step_size: float | Literal["auto"] = "auto",
    batch_size: int | Literal["auto"] | None = "auto",
    num_steps: int = 500,
    learning_rate: float | None = None,
    count_top: bool = False,
    diagnose: bool | None = None,
    seed: int = 0,
    progress_bar: bool = True,
) -> Selection:
    """Rank a pretrained network's parameters by how far a task's posterior lets them move.

    λ_i ~ Gamma(α, rate β), w_i ~ Laplace(anchor_i, λ_i), y ~ likelihood(f(w, x))^{N̂/n} (stage 1 of
    Kim & Hospedales 2023, BayesTune); those of largest posterior mean λ are selected, for
    `finetune(network, data, mask=selection.mask)` to train from the anchor.

    - "bayestune": draws from that posterior (`proximal`), λ drawn at every kept draw.
    - "collapsed": the same chain with E[λ | Δ] in place of drawn λ: equal means, smaller errors.
    - "paper": the recipe of the released code, which has another target (`paper_recipe`).
    - "gradient_squared", "movement", "magnitude", "bias_only", "random": baselines (`rules`).

    A weight's mean scale exceeds that of one which nothing moves by much only where the data pull
    it by N̂|∂L/∂w| of some three β. In a large network few or none may be pulled so hard; the rest
    then rank by the chains' luck, and with several chains `notes` say so (`reliability`).

    Args:
        network: the pretrained network; it is not changed.
        data: (inputs, targets), a mapping, a Dataset or a DataLoader.
        likelihood: "categorical", "normal" (of sd 1), "next_token", or a function of (output,
            targets) with a site `pyro.sample("y", ..., obs=targets)`.
        sparsity: p in (0, 1), the share of parameters outside the head to select, round(p·D) of
            them; or "knee", as many as come before the sharpest bend of the sorted scores.
        threshold: select scores above it instead; `sparsity` then does not matter.
        method: see above.
        prior: `laplace_gamma`, or `functools.partial(laplace_gamma, alpha=..., beta=...)`; or a
            function of the anchor (D,) that samples and returns the site `w` (event dimension D).
            Such a one is sampled whole by BAOAB, in networks of up to some thousand weights; the
            score is the mean of its site `scale` if that is one a weight, and of |w − anchor|
            otherwise. Its defaults are other ones, see `other_priors`.
        groups: of method "bayestune" and the prior laplace_gamma: one λ for each tensor ("layer")
            or each row of a matrix ("row", biases whole) instead of one a parameter, so that whole
            groups rank alike; `threshold` selects none in part, a `sparsity` the last one. It
            takes 0.4 µs a weight and step longer.
        data_size: N̂, what the data count for: n by default, and 1e12 in "paper". The noise of
            minibatches grows with it too, and the steps shrink: take all the data in a step then.
        head: prefix of the freshly initialised head: not ranked, as it has no anchor. Its prior is
            N(0, 1).
        num_chains: C, run one after another. One chain needs least memory and has no R-hat.
        num_samples, warmup_steps, thinning: S kept draws a chain, steps before the first one and
            steps a kept draw costs; by default 500 and 10 (1,500 steps a chain, of 20,000 in the
            paper), and 2,000 and 50 under a prior of your own.
        step_size: ε, of the project's convention; "auto" from curvature and gradient noise at the
            anchor and half through the first warm-up.
        batch_size: B, at most n; "auto" is 32, and all the data under a prior of your own; None
            takes all the data in a step. A DataLoader brings its own.
        num_steps: of "movement".
        learning_rate: of "movement" (5e-5 by default) and "paper" (1e-4), both AdamW.
        count_top: also give the probability of each parameter to be among the round(p·D) largest.
        diagnose: keep R-hat and MCSE; by default with several chains. Costs four vectors (D,).
        seed: equal seeds give equal selections on the same machine.
        progress_bar: show steps, chain and loss.

    Raises:
        TypeError: a prior that is no function of the anchor, or returns no weights.
        ValueError: arguments out of range or at odds; one class; nothing or all selected; no knee.
        DivergedError: the loss or a gradient is not finite: names chain, step and layer; its
            `scale_mean` is that of the draws before.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(200, 20)
        >>> network = FlatNetwork(torch.nn.Linear(20, 1, bias=False))
        >>> y = network(network.anchor, x)[:, 0] + 2 * x[:, 7] + torch.randn(200)
        >>> selection = select_parameters(
        ...     network, (x, y), likelihood="normal", sparsity=0.05, method="collapsed",
        ...     num_chains=1, warmup_steps=100, num_samples=20, progress_bar=False)
        >>> selection
        Selection(method='collapsed', 1 of 20 parameters, 5 %)
        >>> selection.mask.nonzero().item()
        7
    """
    require_network(network)
    if method not in METHODS:
        raise ValueError(f"method must be one of {list(METHODS)}, got {method!r}")
    names = head_names(network, head)
    kept = outside(network.slices, names)
    count = None if threshold is not None else number_to_select(sparsity, int(kept.sum()), method)
    if count_top and (count is None or method not in LANGEVIN):
        raise ValueError(
            "count_top needs a number as sparsity, and method 'bayestune' or 'collapsed': the "
            "parameters counted are the round(sparsity * D) largest of each draw"
        )
    if groups is not None and (
        groups not in ("layer", "row") or method != "bayestune" or count_top
    ):
        raise ValueError(
            f"groups must be 'layer' or 'row', with method 'bayestune' and without count_top, got "
            f"groups={groups!r}, method={method!r}, count_top={count_top}"
        )
    usual = OTHER_PRIOR if method in LANGEVIN and stage_one.gamma_prior(prior) is None else USUAL
    warmup_steps = usual.warmup_steps if warmup_steps is None else warmup_steps
    thinning = usual.thinning if thinning is None else thinning
    for name, length, least in (
        ("num_chains", num_chains, 1),
        ("num_samples", num_samples, 1),
        ("warmup_steps", warmup_steps, 0),
        ("thinning", thinning, 1),
        ("num_steps", num_steps, 1),
        ("seed", seed, 0),
    ):
        require_integer(name, length, least)
    for name, value in (("data_size", data_size), ("learning_rate", learning_rate)):
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"{name} must be a positive number, got {value!r}")
    if step_size != "auto" and not (isinstance(step_size, float | int) and 0 < step_size < 1e30):
        raise ValueError(f"step_size must be 'auto' or a positive number, got {step_size!r}")
    asked = usual.batch_size if batch_size == "auto" else batch_size
    source, size = data_and_batch(data, asked, DEFAULT_BATCH)
    objective = Objective(likelihood, network.device, network.autocast)
    objective.refuse_one_class(source)
    plan = Plan(
        scale="drawn" if method == "bayestune" else "expected",
        num_chains=num_chains,
        num_samples=num_samples,
        warmup_steps=warmup_steps,
        thinning=thinning,
        step_size=step_size,
        data_size=float(data_size or source.num_data),
        batch_size=size,
        seed=seed,
        errors=num_chains > 1 if diagnose is None else diagnose,
        top=count if count_top else None,
        groups=groups,
    )
    task = stage_one.Task(network, source, objective, likelihood, head, names)
    if method in LANGEVIN:
        found = stage_one.langevin(task, prior, plan, progress_bar=progress_bar)
    elif method == "paper":
        found = stage_one.paper(
            task, prior, plan, data_size, learning_rate, progress_bar=progress_bar
        )
    else:
        found = stage_one.by_rule(
            task, method, plan, num_steps, learning_rate, progress_bar=progress_bar
        )
    score = found.score.masked_fill(~kept.to(found.score.device), float("nan"))
    notes = list(found.notes)
    if method == "bias_only":
        mask = score == 1
        notes.append(f"every bias is selected, {int(mask.sum())}; sparsity plays no part")
    else:
        mask = cut(score, kept, count, threshold)
    notes += mixing_notes(found, mask, plan, source.num_data) + chance_notes(found)
    settings = {
        "likelihood": getattr(likelihood, "__name__", str(likelihood)),
        "sparsity": sparsity if threshold is None else None,
        "threshold": threshold,
        "seed": seed,
        **found.settings,
    }
    return Selection(
        method, score, mask, network.slices, names, found.scale_mean, found.scale_sd,
        found.r_hat, found.mcse, found.probability_in_top, settings, tuple(notes),
        network_hash(network, names),
    )  # fmt: skip
