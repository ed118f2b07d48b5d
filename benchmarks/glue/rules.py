"""The rules that are compared, and one run of one of them: choose, fine-tune, measure."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

import ppl_fe as fe
from ppl_fe.data.sources import as_data
from ppl_fe.finetuning.objective import one_pass
from ppl_fe.finetuning.rules.shorthands import RULES, settings_of

Data = tuple[Any, Tensor]
HEAD = "head"
LOOKS, ROWS_AT_ONCE = 10, 16


@dataclass(frozen=True)
class Problem:
    """One task at one seed.

    Attributes:
        network: pretrained, with a fresh head called `HEAD`.
        training, validation, test: (inputs, targets).
        likelihood: by name.
        measure: (output, targets) -> metrics, the first of which counts.
    """

    network: fe.FlatNetwork
    training: Data
    validation: Data
    test: Data
    likelihood: str
    measure: Callable[[Tensor, Tensor], dict[str, float]]


SELECTED = (
    "random",
    "magnitude",
    "gradient",
    "gradient_squared",
    "movement",
    "bias_only",
    "paper",
    "collapsed",
    "bayestune",
    "bayestune_auto",
)
# Rule -> method of `finetune`; "mask" for all that `select_parameters` chooses.
METHODS: dict[str, Literal["mask", "full", "lora"]] = {
    "full": "full",
    "lora": "lora",
    **dict.fromkeys(SELECTED, "mask"),
}


@dataclass(frozen=True)
class Budget:
    """What every rule may use alike.

    Attributes:
        sparsity: p, the share of the weights outside the head that a rule may change.
        selection_steps: minibatch gradients of stage 1, for the rules that take any.
        training_steps: minibatch gradients of stage 2.
        batch_size: B of both stages.
        mask_rates: learning rates of stage 2 to choose from on the validation data, those in the
            middle first, so that a search cut short is a search around it. For LoRA too.
        full_rates: the same for full fine-tuning, as many.
    """

    sparsity: float = 0.005
    selection_steps: int = 400
    training_steps: int = 400
    batch_size: int = 16
    mask_rates: tuple[float, ...] = (3e-3, 1e-2, 1e-3, 3e-2, 3e-4, 1e-4)
    full_rates: tuple[float, ...] = (1e-4, 2e-4, 5e-5, 5e-4, 2e-5, 1e-5)

    def rates(self, rule: str) -> tuple[float, ...]:
        """The learning rates that a rule's search tries, in order."""
        return self.full_rates if rule == "full" else self.mask_rates


def selection_settings(rule: str, budget: Budget) -> dict[str, Any]:
    """What `select_parameters` is given besides the data, and what is left at its defaults.

    The chains, the first half of them warm-up, and the run behind "movement" take the budget's
    steps; what the chains measure for their step size comes on top. Those of "bayestune_auto" take
    a third of them: a step takes two gradients there, and the passes over the data as many again,
    so that stage 1 takes about twice the gradients of "movement". "gradient" and
    "gradient_squared" are by their definition one pass over the data. Priors, step size and
    learning rates of stage 1 are the library's defaults for every rule: none is searched. The data
    of "bayestune" and "collapsed" count once; those of "bayestune_auto" as often as the library
    chooses, with what it takes for it.
    """
    settings: dict[str, Any] = {"method": rule, "sparsity": budget.sparsity}
    if rule in ("bayestune", "collapsed", "paper", "bayestune_auto"):
        half = budget.selection_steps // (6 if rule == "bayestune_auto" else 2)
        settings |= {"num_chains": 1, "warmup_steps": half, "num_samples": half, "thinning": 1}
    elif rule == "movement":
        settings |= {"num_steps": budget.selection_steps}
    return settings | {"batch_size": budget.batch_size}


def rule_of(settings: dict[str, Any], num_data: int) -> fe.Rule:
    """Make the rule of `selection_settings`, whose words stay: stored records are found by them."""
    method = settings["method"]
    name = {"paper": "released_code", "bayestune_auto": "bayestune"}.get(method, method)
    own = {k: v for k, v in settings.items() if k in settings_of(name)}
    if method in ("bayestune", "collapsed"):
        own |= {"data_size": float(num_data)}
    return RULES[name](**own)


def choose(problem: Problem, rule: str, budget: Budget, seed: int) -> tuple[Tensor, list[str]]:
    """Stage 1: the mask (D,), and what the selection has to say about itself."""
    settings = selection_settings(rule, budget)
    selection = fe.select_parameters(
        problem.network,
        problem.training,
        likelihood=problem.likelihood,
        head=HEAD,
        seed=seed,
        progress_bar=False,
        rule=rule_of(settings, len(problem.training[1])),
        sparsity=settings["sparsity"],
        batch_size=settings["batch_size"],
    )
    return selection.mask, [str(note) for note in selection.notes]


def adapter_size(network: fe.FlatNetwork) -> int:
    """Numbers in LoRA's adapters of rank 1: Σ (inputs + outputs) of the linear layers."""
    shapes = dict(zip(network.names, network.shapes, strict=True))
    return sum(
        sum(shapes[f"{name}.weight"])
        for name, layer in network.module.named_modules()
        if type(layer) is nn.Linear and name != HEAD
    )


def lora_rank(network: fe.FlatNetwork, sparsity: float) -> int:
    """The rank whose adapters come nearest to p·D numbers, at least 1.

    Example:
        >>> from collections import OrderedDict
        >>> layers = {"body": nn.Linear(50, 50, bias=False), "head": nn.Linear(50, 2)}
        >>> network = fe.FlatNetwork(nn.Sequential(OrderedDict(layers)))
        >>> lora_rank(network, 0.1)                                 # 250 numbers, 100 a rank
        2
    """
    head = network.head_names(HEAD)
    size = network.num_parameters - sum(
        shape.numel()
        for name, shape in zip(network.names, network.shapes, strict=True)
        if name in head
    )
    return max(1, round(sparsity * size / adapter_size(network)))


def train_and_measure(
    problem: Problem, rule: str, rate: float, mask: Tensor | None, budget: Budget, seed: int
) -> dict[str, Any]:
    """Stage 2 and its measures: validation (with its loss), test, and what it cost.

    The state of lowest validation loss counts, of eleven looks. There is no early stop: every rule
    takes the same steps. A run that is not finite gives its `error` in place of the measures.
    """
    method = METHODS[rule]
    rank = lora_rank(problem.network, budget.sparsity) if method == "lora" else 1
    started = time.perf_counter()
    try:
        tuned = fe.finetune(
            problem.network,
            problem.training,
            likelihood=problem.likelihood,
            mask=mask,
            method=method,
            head=HEAD,
            learning_rate=rate,
            num_steps=budget.training_steps,
            batch_size=budget.batch_size,
            validation=problem.validation,
            evaluate_every=max(1, budget.training_steps // LOOKS),
            patience=budget.training_steps,
            lora_rank=rank,
            seed=seed,
            progress_bar=False,
        )
    except FloatingPointError as error:
        return {"error": str(error)}
    seconds = time.perf_counter() - started
    loss = float(tuned.history["validation_loss"].min())
    trained = int(tuned.mask.sum())
    if method == "lora":
        trained = rank * adapter_size(problem.network)
    return {
        "test": evaluate(problem, tuned.weights, problem.test),
        "validation": evaluate(problem, tuned.weights, problem.validation) | {"loss": loss},
        "training_seconds": round(seconds, 1),
        "best_step": tuned.step,
        "trained": trained,
    }


def evaluate(problem: Problem, vector: Tensor, data: Data) -> dict[str, float]:
    """The metrics of the network with these weights (D,)."""
    with torch.no_grad():
        outputs = [problem.network(vector, x) for x, _ in one_pass(as_data(data), ROWS_AT_ONCE)]
    return problem.measure(torch.cat(outputs), data[1])
