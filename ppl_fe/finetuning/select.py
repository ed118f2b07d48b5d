"""Which parameters of a network to update: the question, from data to a `Selection`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ppl_fe.arguments import named_arguments, require_integer
from ppl_fe.files.kept_run import KeptRun, kept_run
from ppl_fe.finetuning.going_on import facts_of, hold_to
from ppl_fe.finetuning.objective import Objective, data_and_batch
from ppl_fe.finetuning.part_of_network import in_whole, in_words, mask_in_whole, part_of
from ppl_fe.finetuning.rules.shorthands import RuleName, find_rule, former_arguments
from ppl_fe.finetuning.score_notes import agreement_notes, chance_notes
from ppl_fe.finetuning.scoring import DEFAULT_BATCH, Rule, Task
from ppl_fe.finetuning.selection import Selection
from ppl_fe.finetuning.threshold import cut, number_to_select, outside
from ppl_fe.models.likelihoods import Likelihood
from ppl_fe.networks.flat import FlatNetwork, require_network
from ppl_fe.networks.hashes import network_hash
from ppl_fe.networks.parameter_names import Parameters
from ppl_fe.ranks import are_several, is_first

FORMAT = "ppl-fe selection run 2"


@former_arguments
@named_arguments
def select_parameters(
    network: FlatNetwork,
    data: Any,
    *,
    likelihood: str | Likelihood = "categorical",
    rule: RuleName | Rule = "bayestune",
    sparsity: float | Literal["knee"] = 0.005,
    threshold: float | None = None,
    parameters: Parameters = None,
    head: str | Sequence[str] | None = None,
    batch_size: int | Literal["auto"] | None = "auto",
    seed: int = 0,
    save_to: str | Path | None = None,
    resume: bool = False,
    progress_bar: bool = True,
) -> Selection:
    """Rank a pretrained network's parameters by a rule and select the first of them.

    By default the rule is BayesTune: those parameters that a task's posterior lets move farthest.
    Train them, and them alone, with `finetune(network, data, mask=selection.mask)`.

    Args:
        network: the pretrained network of D parameters; it is not changed.
        data: (inputs, targets), a mapping, a Dataset or a DataLoader.
        likelihood: "categorical" (the default), "normal" (of sd 1), "next_token", or a function of
            (output, targets) with a site `pyro.sample("y", ..., obs=targets)`.
        rule: what parameters are ranked by, an object with its own settings or, at its defaults, a
            name:

            - `fe.BayesTune()`, "bayestune": the scales of BayesTune's posterior, drawn from it as
              it is stated, or under a prior of your own; "collapsed" is
              `fe.BayesTune(scales="expected")`.
            - `fe.ReleasedCode()`, "released_code": what the code released with BayesTune does,
              which has another target.
            - `fe.Gradient()`, `fe.GradientSquared()`, `fe.GradientToWeight()`, `fe.PerNeuron()`,
              `fe.Movement()`, `fe.Magnitude()`, `fe.LowRank()`, `fe.BiasOnly()`, `fe.Random()`, or
              "gradient" and so on: rules without a posterior.
            - an object of a `Rule` of your own (`ppl_fe.finetuning.scoring`).
        sparsity: p in (0, 1), the share to select of the D parameters that may be chosen, that is
            round(p·D), 0.005 by default; or "knee", as many as come before the sharpest bend of the
            sorted scores.
        threshold: select scores above it instead; `sparsity` then does not matter.
        parameters: which parameters may be chosen, all outside the head by default; the others stay
            at their pretrained values. Names of parameters or of modules, patterns of names such
            as "*.attention.*", one of these or several; "linear", the weights of plain linear
            layers, so that `save_adapter` can write the result; or a predicate of a name.
        head: prefix of the freshly initialised head, or several: not ranked, as it has no anchor.
            Its prior is N(0, 1). None, the default, warns where transformers (5 or later) found no
            values for a layer.
        batch_size: B, rows in a minibatch, at most n; "auto" (the default) is 32, and all the data
            under a prior of your own; None takes all the data in a step. A DataLoader brings its
            own.
        seed: equal seeds give equal selections on the same machine; 0 by default.
        save_to: a new file that keeps the chains and their moments, for BayesTune under its own
            prior, which takes long. At most a tenth of the time goes into writing it. Default none.
        resume: go on with the run that `save_to` keeps, begun by the same call, after Ctrl-C or a
            crash: the selection is that of an uninterrupted run, bit for bit, and that of a
            complete one is read. Another call is refused. Default False.
        progress_bar: show steps, chain and loss; True by default.

    Returns:
        The selection. Read its `notes` before believing it.

    Raises:
        TypeError: an argument that is not there; a rule that is none.
        ValueError: arguments out of range or at odds; a name or pattern in `parameters` that
            matches nothing; one class; nothing or all selected; no knee; `save_to` for a rule that
            is quick; a run to be resumed that another call began or that is damaged.
        BlockingIOError: another process writes to `save_to`.
        FileExistsError: `save_to` exists.
        FileNotFoundError: there is nothing to resume.
        DivergedError: the loss or a gradient is not finite: names chain, step and layer; its
            `scale_mean` is that of the draws before.

    Example:
        >>> import torch
        >>> import ppl_fe as fe
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(200, 20)
        >>> network = FlatNetwork(torch.nn.Linear(20, 1, bias=False))
        >>> y = network(network.anchor, x)[:, 0] + 2 * x[:, 7] + torch.randn(200)
        >>> rule = fe.BayesTune(scales="expected", num_chains=1, warmup_steps=100, num_samples=20)
        >>> selection = select_parameters(
        ...     network, (x, y), likelihood="normal", rule=rule, sparsity=0.05, progress_bar=False)
        >>> selection
        Selection(rule='collapsed', 1 of 20 parameters, 5 %)
        >>> selection.mask.nonzero().item()
        7
    """
    require_network(network)
    require_integer("seed", seed, 0)
    rule = find_rule(rule)
    if save_to is not None and not rule.can_be_kept:
        raise ValueError(
            f"save_to keeps the chains of BayesTune under its own prior; rule={rule.name!r} has "
            "none to go on with: leave save_to out, and write the result by selection.save(path)"
        )
    names = network.checked_head(head)
    part = part_of(network, parameters, names)
    ranked = outside(part.slices, names)
    wanted = rule.takes_sparsity and threshold is None
    count = number_to_select(sparsity, int(ranked.sum())) if wanted else None
    asked = rule.default_batch_size if batch_size == "auto" else batch_size
    source, size = data_and_batch(data, asked, DEFAULT_BATCH)
    objective = Objective(likelihood, network.device, network.autocast)
    objective.refuse_one_class(source)
    task = Task(
        part,
        source,
        objective,
        likelihood,
        head,
        names,
        ranked,
        count,
        size,
        seed,
        progress_bar and is_first(),
    )
    asked_for = {"sparsity": sparsity, "threshold": threshold, "parameters": in_words(parameters)}
    with kept_run(save_to, FORMAT, resume=resume) as kept:
        _agree(kept, network, task, {**_settings(task, rule), **asked_for})
        found = rule.score(replace(task, kept=kept)).within(ranked)
    chosen = cut(found.score, ranked, count, threshold) if rule.takes_sparsity else found.score == 1
    notes = (*found.notes, *agreement_notes(found, chosen), *chance_notes(found))
    found = in_whole(found, part, network)
    return Selection(
        rule=rule.name,
        score=found.score,
        mask=mask_in_whole(chosen, part, network),
        slices=network.slices,
        head=names,
        scale_mean=found.scale_mean,
        scale_sd=found.scale_sd,
        r_hat=found.r_hat,
        mcse=found.mcse,
        probability_in_top=found.probability_in_top,
        settings={
            "likelihood": getattr(likelihood, "__name__", str(likelihood)),
            **asked_for,
            "sparsity": sparsity if threshold is None else None,
            "seed": seed,
            **found.settings,
        },
        notes=notes,
        base_hash=network_hash(network, names),
    )


def _agree(
    kept: KeptRun | None, network: FlatNetwork, task: Task, settings: dict[str, Any]
) -> None:
    """Hold the call to the run that is kept, and the ranks to each other.

    Raises:
        ValueError: they differ; the message says in what.
    """
    if kept is None and not are_several():
        return
    hold_to(kept, facts_of(network, task.objective, {"data": task.source}, settings))


def _settings(task: Task, rule: Rule) -> dict[str, Any]:
    """Give what tells one call's run from another's, beside its data."""
    own = {name: repr(value) for name, value in vars(rule).items()}
    call = {"batch_size": task.batch_size, "seed": task.seed, "head": task.head}
    return {"rule": rule.name, **own, **call}
