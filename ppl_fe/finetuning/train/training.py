"""Stage 2 of BayesTune: from the pretrained weights again, training the selected entries alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ppl_fe.arguments import named_arguments, require_integer
from ppl_fe.data.sources import as_data
from ppl_fe.diverged import DivergedError
from ppl_fe.files.digest import digest
from ppl_fe.files.kept_run import KeptRun, kept_run
from ppl_fe.finetuning.going_on import facts_of, hold_to
from ppl_fe.finetuning.objective import Objective, data_and_batch, shuffled
from ppl_fe.finetuning.train import lora
from ppl_fe.finetuning.train.finetune_result import FinetuneResult
from ppl_fe.finetuning.train.looks import Metric, at_step, looks_of
from ppl_fe.finetuning.train.trained_entries import (
    TrainedEntries,
    build_optimizer,
    check_mask,
    mask_entries,
    module_at,
)
from ppl_fe.finetuning.train.training_loop import Outcome, Training, TrainingPlan
from ppl_fe.models.likelihoods import Likelihood
from ppl_fe.networks.flat import FlatNetwork, require_network
from ppl_fe.networks.hashes import network_hash
from ppl_fe.networks.parameter_names import Parameters, chosen_names
from ppl_fe.ranks import are_several

Method = Literal["mask", "full", "head", "lora"]
# For AdamW. The published stage 2 uses 1e-3 at a sparsity of 0.5 %; all weights bear far less.
LEARNING_RATES = {"mask": 1e-3, "head": 1e-3, "lora": 1e-3, "full": 5e-5}
DEFAULT_BATCH, DEFAULT_EPOCHS, MOST_EVALUATIONS = 16, 3, 50
FORMAT = "ppl-fe fine-tuning 1"


@named_arguments
def finetune(
    network: FlatNetwork,
    data: Any,
    *,
    likelihood: str | Likelihood = "categorical",
    mask: Tensor | None = None,
    method: Method = "mask",
    parameters: Parameters = None,
    head: str | Sequence[str] | None = None,
    optimizer: Literal["adamw", "sgd"] = "adamw",
    learning_rate: float | None = None,
    num_steps: int | None = None,
    num_epochs: int | None = None,
    batch_size: int | None = DEFAULT_BATCH,
    weight_decay: float = 0.0,
    schedule: Literal["linear", "constant"] = "linear",
    validation: Any = None,
    metrics: Mapping[str, Metric] | None = None,
    evaluate_every: int | None = None,
    patience: int = 5,
    lora_rank: int = 8,
    seed: int = 0,
    save_to: str | Path | None = None,
    resume: bool = False,
    progress_bar: bool = True,
) -> FinetuneResult:
    """Fine-tune selected entries of a network; all others stay as they were, bit for bit.

    Minimises L_n(w) = −(1/n) Σ log p(y_i | x_i, w) from w = `network.anchor`, over the entries
    that `mask` selects and those of a fresh head (stage 2 of Kim & Hospedales 2023, BayesTune).
    The network is the function that `FlatNetwork` makes of a module: dropout off, statistics of
    normalisation layers fixed. The optimiser keeps state for the trained entries only.

    Args:
        network: the pretrained network of D parameters; it is not changed.
        data: (inputs, targets), a mapping, a Dataset or a DataLoader, of N examples.
        likelihood: "categorical" (default), "normal" (of sd 1), "next_token", or a function of
            (output, targets) with a site `pyro.sample("y", ..., obs=targets)`.
        mask: (D,) bool, the entries to train, as `select_parameters(...).mask`; for method "mask".
        method: "mask" (default); "full", all entries; "head", the head alone; "lora", adapters of
            low rank in every plain linear layer outside the head, by the package peft, merged at
            the end.
        parameters: which parameters the methods "full" and "lora" train, as in
            `select_parameters`: names, patterns, or "linear"; all by default.
        head: prefix of the freshly initialised head's parameters, or several; None (default) if
            there is no such head, which warns where transformers (5 or later) found no values for a
            layer. They are always trained, never count towards the mask's sparsity, and a delta
            stores them whole.
        optimizer: "adamw" (default), or "sgd" with momentum 0.9.
        learning_rate: η, the largest of the schedule; for AdamW 1e-3 by default, and 5e-5 for
            "full". SGD has no default.
        num_steps: T, the number of updates; give this or `num_epochs`.
        num_epochs: passes over the data, 3 if neither is given.
        batch_size: B, at most N, 16 by default; None takes all the data in a step. A DataLoader
            brings its own.
        weight_decay: pull of trained entries towards zero, 0 by default.
        schedule: "linear" (default), up over the first 6 % of the steps, then down; or "constant".
        validation: data in any of the forms above. The state of lowest validation loss is kept.
        metrics: name -> function of (outputs, targets), of the network's outputs (N, ...) and the
            targets of all N rows, on the CPU, which gives one number, as
            ``{"accuracy": lambda out, y: (out.argmax(-1) == y).float().mean()}``. They are computed
            on `validation`, or without it on `data`, as often as `evaluate_every` says, the first
            time before any step, and stand in the history under their names. None by default.
        evaluate_every: steps between two looks at `validation` or for `metrics`; by default one
            pass over the data, or more where that would be over 50 looks.
        patience: evaluations without a better loss before training stops early, 5 by default.
        lora_rank: r of method "lora", 8 by default.
        seed: seed of the order of the data and of adapters, 0 by default. The global random state
            is untouched.
        save_to: a new file that keeps the run: weights, optimiser, best state, history. At most a
            tenth of the time goes into writing it. Default none.
        resume: go on with the run that `save_to` keeps, begun by the same call, after Ctrl-C or a
            crash: the result is that of an uninterrupted run, bit for bit, and that of a complete
            one is read. Another call is refused. Default False.
        progress_bar: whether to show steps, loss and learning rate, True by default.

    Raises:
        TypeError: a mask that is no tensor of booleans; an argument that does not exist.
        ValueError: a mask of another shape or empty; arguments that do not go together or are out
            of range; labels out of range or of one class only; a head that does not exist; a
            metric that fails or gives no number, or whose name is taken; a run to be resumed that
            another call began or that is damaged.
        BlockingIOError: another process writes to `save_to`.
        FileExistsError: `save_to` exists.
        FileNotFoundError: there is nothing to resume.
        ImportError: method "lora" without peft.
        DivergedError: the loss, a gradient or a weight is not finite: names the step and the
            layer; its `tuned` is the last good state.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(64, 2)
        >>> network = FlatNetwork(torch.nn.Linear(2, 2))
        >>> mask = torch.tensor([True, False, True, False, False, False])
        >>> tuned = finetune(network, (x, (x[:, 0] > 0).long()), mask=mask, learning_rate=0.1,
        ...                  num_steps=50, progress_bar=False)
        >>> (tuned.weights == network.anchor).tolist()
        [False, True, False, True, True, True]
        >>> bool(tuned.history["loss"].iloc[-1] < tuned.history["loss"].iloc[0])
        True
    """
    require_network(network)
    names = network.checked_head(head)
    selected = _selected(network, mask, method, parameters, names)
    with kept_run(save_to, FORMAT, resume=resume) as kept:
        source, size = data_and_batch(data, batch_size, DEFAULT_BATCH)
        held_out = None if validation is None else as_data(validation)
        objective = Objective(likelihood, network.device, network.autocast)
        objective.refuse_one_class(source)
        steps_per_epoch = source.num_data // size
        steps = _num_steps(num_steps, num_epochs, steps_per_epoch)
        if evaluate_every is None:
            evaluate_every = max(steps_per_epoch, -(-steps // MOST_EVALUATIONS))
        if learning_rate is None:
            learning_rate = _usual_rate(optimizer, method)
        plan = TrainingPlan(steps, learning_rate, schedule, evaluate_every, patience)
        require_integer("seed", seed, 0)

        module = module_at(network, network.anchor)
        if method == "lora":
            selected, entries = lora.wrap(network, module, names, parameters, lora_rank, seed)
        else:
            entries = mask_entries(network, selected, names)
        trained = TrainedEntries(module, entries)
        objective.check(module, source)
        if held_out is not None:
            objective.check(module, held_out, "validation")
        training = Training(
            module,
            trained,
            build_optimizer(optimizer, trained.leaves, learning_rate, weight_decay),
            objective,
            plan,
            looks_of(source, held_out, metrics, size),
        )
        if kept is not None or are_several():
            own: dict[str, Any] = {"method": method, "optimizer": optimizer, "seed": seed}
            own |= {"weight_decay": weight_decay, "lora_rank": lora_rank}
            own |= {"batch_size": size, "head": head, "metrics": [*(metrics or ())]}
            sources = {"data": source} | ({} if held_out is None else {"validation": held_out})
            facts = facts_of(network, objective, sources, {**vars(plan), **own})
            _go_on(kept, training, facts, selected)
        batches = shuffled(source, size, seed, training.step)
        outcome = training.run(batches, kept, progress_bar=progress_bar)
    adapters = lora.unwrap(module) if method == "lora" else {}
    weights = network.flatten({n: module.get_parameter(n).detach() for n in network.names})
    parts = network.unflatten(weights)
    tuned = FinetuneResult(
        weights=weights,
        history=outcome.history,
        mask=selected,
        step=outcome.step,
        base_hash=network_hash(network, names),
        head={name: parts[name] for name in names},
        network=network,
        adapters=adapters,
        metrics=at_step(outcome.history, outcome.step, metrics or ()),
    )
    if outcome.failure:
        raise _diverged(outcome, plan, tuned)
    return tuned


def _diverged(outcome: Outcome, plan: TrainingPlan, tuned: FinetuneResult) -> DivergedError:
    return DivergedError(
        f"{outcome.failure}; lower learning_rate={plan.learning_rate:g}. The weights after "
        f"{outcome.step} steps, the last good ones, are in this error's .tuned",
        tuned=tuned,
    )


def _go_on(
    kept: KeptRun | None, training: Training, facts: dict[str, Any], selected: Tensor
) -> None:
    """Take up the run that is kept, if it is to be resumed and is that of the same call."""
    facts["data"]["mask"] = digest({"": selected})
    hold_to(kept, facts)
    if kept is not None and kept.stopped is not None:
        training.restore(kept.stopped)


def _selected(
    network: FlatNetwork,
    mask: Tensor | None,
    method: str,
    parameters: Parameters,
    head: tuple[str, ...],
) -> Tensor:
    """Give the entries to train outside the head, (D,) bool; none yet for "lora"."""
    if method not in LEARNING_RATES:
        raise ValueError(f"method must be one of {sorted(LEARNING_RATES)}, got {method!r}")
    if (mask is None) == (method == "mask"):
        raise ValueError(
            f"method={method!r} {'needs a' if mask is None else 'takes no'} mask; give a mask for "
            "method='mask', and none for 'full', 'head' and 'lora'"
        )
    if method == "head" and not head:
        raise ValueError("method='head' needs head=, the prefix of the head's parameters")
    if parameters is not None and method not in ("full", "lora"):
        raise ValueError(
            f"parameters={parameters!r} is of the methods 'full' and 'lora'; what a mask may hold "
            "is said where it is made, select_parameters(..., parameters=...)"
        )
    if mask is None:
        selected = torch.zeros_like(network.anchor, dtype=torch.bool)
        for name in chosen_names(network.module, parameters) if method == "full" else ():
            if name in network.slices:
                selected[network.slices[name]] = True
    else:
        check_mask(network, mask)
        selected = mask.to(network.device).clone()
    for name in head:
        selected[network.slices[name]] = False
    return selected


def _num_steps(num_steps: int | None, num_epochs: int | None, steps_per_epoch: int) -> int:
    if num_steps is not None and num_epochs is not None:
        raise ValueError(f"num_steps={num_steps} and num_epochs={num_epochs}: give one of them")
    if num_steps is not None:
        require_integer("num_steps", num_steps, 1)
        return num_steps
    epochs = DEFAULT_EPOCHS if num_epochs is None else num_epochs
    require_integer("num_epochs", epochs, 1)
    return epochs * steps_per_epoch


def _usual_rate(optimizer: str, method: str) -> float:
    if optimizer == "sgd":
        raise ValueError("learning_rate has no default for sgd; give one, for example 0.01")
    return LEARNING_RATES[method]
