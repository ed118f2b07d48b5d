"""Stage 2 of BayesTune: from the pretrained weights again, training the selected entries alone."""

from __future__ import annotations

import copy
from math import isfinite
from typing import Any, Literal

import torch
from torch import Tensor

from ppl_fe.data.sources import as_data
from ppl_fe.finetuning.objective import Objective, data_and_batch, one_pass, shuffled
from ppl_fe.finetuning.train import lora
from ppl_fe.finetuning.train.trained_entries import (
    TrainedEntries,
    build_optimizer,
    check_mask,
    head_names,
    mask_entries,
)
from ppl_fe.finetuning.train.training_loop import Plan, train
from ppl_fe.finetuning.train.tuned import NotFiniteError, Tuned
from ppl_fe.models.likelihoods import Likelihood
from ppl_fe.networks.flat import FlatNetwork, require_network
from ppl_fe.networks.hashes import network_hash

Method = Literal["mask", "full", "head", "lora"]
# For AdamW. The published stage 2 uses 1e-3 at a sparsity of 0.5 %; all weights bear far less.
LEARNING_RATES = {"mask": 1e-3, "head": 1e-3, "lora": 1e-3, "full": 5e-5}
DEFAULT_BATCH, DEFAULT_EPOCHS, MOST_LOOKS = 16, 3, 50


def finetune(
    network: FlatNetwork,
    data: Any,
    *,
    likelihood: str | Likelihood = "categorical",
    mask: Tensor | None = None,
    method: Method = "mask",
    head: str | None = None,
    optimizer: Literal["adamw", "sgd"] = "adamw",
    learning_rate: float | None = None,
    num_steps: int | None = None,
    num_epochs: int | None = None,
    batch_size: int | None = DEFAULT_BATCH,
    weight_decay: float = 0.0,
    schedule: Literal["linear", "constant"] = "linear",
    validation: Any = None,
    evaluate_every: int | None = None,
    patience: int = 5,
    lora_rank: int = 8,
    seed: int = 0,
    progress_bar: bool = True,
) -> Tuned:
    """Fine-tune selected entries of a network; all others stay as they were, bit for bit.

    Minimises L_n(w) = −(1/n) Σ log p(y_i | x_i, w) from w = `network.anchor`, over the entries
    that `mask` selects and those of a fresh head (stage 2 of Kim & Hospedales 2023, BayesTune).
    The network is the function that `FlatNetwork` makes of a module: dropout off, statistics of
    normalisation layers fixed. The optimiser keeps state for the trained entries only.

    Args:
        network: the pretrained network; it is not changed.
        data: (inputs, targets), a mapping, a Dataset or a DataLoader.
        likelihood: "categorical", "normal" (of sd 1), "next_token", or a function of (output,
            targets) with a site `pyro.sample("y", ..., obs=targets)`.
        mask: (D,) bool, the entries to train, as `select_parameters(...).mask`; for method "mask".
        method: "mask"; "full", all entries; "head", the head alone; "lora", adapters of low rank
            in every plain linear layer outside the head, by the package peft, merged at the end.
        head: prefix of the freshly initialised head's parameters. They are always trained, never
            count towards the mask's sparsity, and a delta stores them whole.
        optimizer: "adamw", or "sgd" with momentum 0.9.
        learning_rate: η, the largest; for AdamW by default 1e-3, and 5e-5 for "full".
        num_steps: T; or
        num_epochs: passes over the data, 3 if neither is given.
        batch_size: B, at most N; None takes all the data in a step. A DataLoader brings its own.
        weight_decay: towards zero, of trained entries only.
        schedule: "linear", up over the first 6 % of the steps, then down; or "constant".
        validation: data in any of the forms above. The state of lowest validation loss is kept.
        evaluate_every: steps between looks at them; by default one pass over the data, or more
            where that would be over 50 looks.
        patience: looks without a better loss before training stops early.
        lora_rank: r of method "lora".
        seed: of the order of the data and of adapters. The global random state is untouched.
        progress_bar: show steps, loss and learning rate.

    Raises:
        TypeError: a mask that is no tensor of booleans.
        ValueError: a mask of another shape or empty; arguments that do not go together or are out
            of range; labels out of range or of one class only; a head that is not there.
        ImportError: method "lora" without peft.
        NotFiniteError: the loss, a gradient or a weight is not finite: names the step and the
            layer; its `tuned` is the last good state.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(64, 2)
        >>> network = FlatNetwork(torch.nn.Linear(2, 2))
        >>> mask = torch.tensor([True, False, True, False, False, False])
        >>> tuned = finetune(network, (x, (x[:, 0] > 0).long()), mask=mask, learning_rate=0.1,
        ...                  num_steps=50, progress_bar=False)
        >>> (tuned.vector == network.anchor).tolist()
        [False, True, False, True, True, True]
        >>> bool(tuned.history["loss"].iloc[-1] < tuned.history["loss"].iloc[0])
        True
    """
    require_network(network)
    names = head_names(network, head)
    selected = _selected(network, mask, method, names)
    source, size = data_and_batch(data, batch_size, DEFAULT_BATCH)
    held_out = None if validation is None else as_data(validation)
    objective = Objective(likelihood, network.device, network.autocast)
    objective.refuse_one_class(source)
    if learning_rate is None:
        if optimizer == "sgd":
            raise ValueError("learning_rate has no default for sgd; give one, 0.01 say")
        learning_rate = LEARNING_RATES[method]
    plan = _plan(
        source.num_data // size,
        num_steps,
        num_epochs,
        evaluate_every,
        learning_rate=learning_rate,
        schedule=schedule,
        patience=patience,
    )
    _require(isfinite(weight_decay) and weight_decay >= 0, "weight_decay", weight_decay, ">= 0")
    _require(seed >= 0, "seed", seed, "a non-negative integer")

    module = copy.deepcopy(network.module)
    with torch.no_grad():
        for name, value in network.unflatten(network.anchor).items():
            module.get_parameter(name).copy_(value)
    if method == "lora":
        selected, entries = lora.wrap(network, module, names, lora_rank, seed)
    else:
        entries = mask_entries(network, selected, names)
    trained = TrainedEntries(module, entries)
    objective.check(module, source)
    if held_out is not None:
        objective.check(module, held_out, "validation")
    outcome = train(
        module,
        trained,
        build_optimizer(optimizer, trained.leaves, learning_rate, weight_decay),
        objective,
        shuffled(source, size, seed),
        plan,
        None if held_out is None else lambda: one_pass(held_out, size),
        progress_bar=progress_bar,
    )
    if method == "lora":
        lora.unwrap(module)
    vector = network.flatten({n: module.get_parameter(n).detach() for n in network.names})
    tuned = Tuned(
        vector=vector,
        history=outcome.history,
        mask=selected,
        step=outcome.step,
        base_hash=network_hash(network, names),
        head={name: tensor for name, tensor in network.unflatten(vector).items() if name in names},
        network=network,
    )
    if outcome.failure:
        raise NotFiniteError(
            f"{outcome.failure}; lower learning_rate={learning_rate:g}. The weights after "
            f"{outcome.step} steps, the last good ones, are in this error's .tuned",
            tuned,
        )
    return tuned


def _selected(
    network: FlatNetwork, mask: Tensor | None, method: str, head: tuple[str, ...]
) -> Tensor:
    """The entries to train outside the head, (D,) bool; for "lora" they come later."""
    if method not in LEARNING_RATES:
        raise ValueError(f"method must be one of {sorted(LEARNING_RATES)}, got {method!r}")
    if (mask is None) == (method == "mask"):
        raise ValueError(
            f"method={method!r} {'needs a' if mask is None else 'takes no'} mask; give a mask for "
            "method='mask', and none for 'full', 'head' and 'lora'"
        )
    if method == "head" and not head:
        raise ValueError("method='head' needs head=, the prefix of the head's parameters")
    if mask is None:
        selected = torch.full_like(network.anchor, method == "full", dtype=torch.bool)
    else:
        check_mask(network, mask)
        selected = mask.to(network.device).clone()
    for name in head:
        selected[network.slices[name]] = False
    return selected


def _plan(
    steps_per_epoch: int,
    num_steps: int | None,
    num_epochs: int | None,
    evaluate_every: int | None,
    *,
    learning_rate: float,
    schedule: str,
    patience: int,
) -> Plan:
    if num_steps is not None and num_epochs is not None:
        raise ValueError(f"num_steps={num_steps} and num_epochs={num_epochs}: give one of them")
    for name, count in (
        ("num_steps", num_steps),
        ("num_epochs", num_epochs),
        ("evaluate_every", evaluate_every),
        ("patience", patience),
    ):
        _require(count is None or count >= 1, name, count, "at least 1")
    _require(isfinite(learning_rate) and learning_rate > 0, "learning_rate", learning_rate, "> 0")
    _require(schedule in ("linear", "constant"), "schedule", schedule, "'linear' or 'constant'")
    steps = num_steps or (num_epochs or DEFAULT_EPOCHS) * steps_per_epoch
    every = evaluate_every or max(steps_per_epoch, -(-steps // MOST_LOOKS))
    return Plan(steps, learning_rate, schedule, every, patience)


def _require(fulfilled: bool, name: str, value: object, wanted: str) -> None:
    if not fulfilled:
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
