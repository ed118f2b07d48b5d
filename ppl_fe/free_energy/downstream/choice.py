"""Several checkpoints and a few labels of the task: which one to fine-tune."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ppl_fe.arguments import named_arguments
from ppl_fe.data.sources import TensorData, as_data
from ppl_fe.free_energy.candidates import Checkpoint, Trial, in_words, named_checkpoints
from ppl_fe.free_energy.downstream.criteria import (
    FINETUNED,
    ON_FEATURES,
    SAMPLED,
    ZERO_SHOT,
    chosen_criteria,
    feature_layer,
    label_columns,
)
from ppl_fe.free_energy.downstream.labels import classes_of, is_classes, refuse_constant
from ppl_fe.free_energy.downstream.recommendation import (
    agreement,
    oriented,
    recommend,
    trusted,
)
from ppl_fe.free_energy.downstream.sampled import Sampled, sample_all
from ppl_fe.free_energy.downstream.short_finetunes import (
    ShortFinetunes,
    by_halves,
)
from ppl_fe.free_energy.ladders import Ladders
from ppl_fe.free_energy.local_chains import ChainOptions, FreshHead, program_and_kernel
from ppl_fe.free_energy.lots import side_by_side
from ppl_fe.inference.kernels import Kernel
from ppl_fe.inference.run_plan import RunLength
from ppl_fe.inference.step.compile import CompileMode
from ppl_fe.models.likelihoods import Likelihood, find_likelihood
from ppl_fe.networks.flat import FlatNetwork, require_network

PASSES_A_GRADIENT = 3  # a backward pass costs about two forward ones
NO_NEIGHBOURHOOD = 100.0  # γ of fine-tunes where no free energy is asked for and none is given
READ_FIRST = (
    "Error bars of free_energy and expected_loss are Monte Carlo error, those of the other "
    "criteria are over the labels. benchmarks/results/few_labels.txt shows how well each foretold "
    "fine-tuning where that was tried."
)


class _Question(NamedTuple):
    """What is asked of every candidate."""

    source: TensorData
    likelihood: Likelihood
    head: FreshHead | None
    features: str | None
    wanted: tuple[str, ...]


@named_arguments
def choose_checkpoint(
    checkpoints: Mapping[str, Checkpoint] | Iterable[Checkpoint],
    module: nn.Module,
    downstream: Any,
    *,
    head: str | None = None,
    head_precision: float = FreshHead.precision,
    by: str = "free_energy",
    criteria: Sequence[str] | None = None,
    features: str | None = None,
    likelihood: str | Likelihood = ChainOptions.likelihood,
    localization: float | Literal["auto"] = "auto",
    kernel: type[Kernel] = ChainOptions.kernel,
    num_rungs: int = 12,
    num_chains: int = 2,
    num_samples: int = 1000,
    warmup_steps: int = 300,
    seed: int = ChainOptions.seed,
    progress_bar: bool = ChainOptions.progress_bar,
    compile: CompileMode = ChainOptions.compile,
) -> pd.DataFrame:
    """Choose the checkpoint to fine-tune, by a few labelled examples of the task itself.

    `rank_checkpoints` asks the pretraining data; this asks the downstream ones, with a module that
    has the downstream head. Beside the downstream free energy −log Z at β = 1 stands what else
    could tell, each with an error bar:

    - ``free_energy`` and ``expected_loss``: −log Z and E[nL_n(w)] at β = 1, in nats (see
      `integrate_free_energy`), with the worst ``r_hat`` and ``ess`` of the rungs;
    - ``zero_shot_loss``, ``zero_shot_score``: as the checkpoint is, where its head is trained;
    - ``logme``, ``knn_score``, ``ridge_score``, ``pactran``: on the features. kNN and the ridge
      probe leave each example out of its own prediction;
    - ``finetune_loss``, ``finetune_score``, ``finetune_steps``: short fine-tunes, each fold of the
      labels left out once, the worse half of the candidates stopped after each round.

    A score is the accuracy of classes, or Spearman's rank correlation of numbers.

    Args:
        checkpoints: as in `rank_checkpoints`; a fresh head may be missing from them, or be another
            task's.
        module: the architecture with the downstream head; its own weights do not matter.
        downstream: (inputs, targets) in memory, as in `estimate_free_energy`: the few labels.
        head: the prefix of a fresh head's parameters, as "classifier"; None (default) where the
            checkpoints' own head is to be taken.
        head_precision: of the head's prior N(0, 1/head_precision), 1.0 by default.
        by: the criterion of the order and the recommendation, "free_energy" by default.
        criteria: what to compute, by name; all that mean something here by default.
        features: the module whose input counts as the features; by default the head, or the last
            linear layer.
        likelihood: "categorical" (default), "normal", "next_token", or a function of
            (outputs, targets) that makes the observed site.
        localization: γ, in units of 1/weight²; "auto" (default) chooses one for all candidates by
            the evidence of up to four of them, and `attrs` say what was tried.
        kernel: the sampler's class, `fe.BAOAB` by default.
        num_rungs: K, rungs of the ladder above the prior's, 12 by default.
        num_chains: chains a rung, 2 by default.
        num_samples: S, steps a chain after its warm-up, 1000 by default.
        warmup_steps: 300 by default.
        seed: 0 by default.
        progress_bar: True by default.
        compile: "auto" by default, as in `fe.sample`.

    Returns:
        One row a checkpoint, best first, the untrusted ones after those whose chains mixed and the
        failed ones last: the columns above, each with `_error`, then note and error. In its
        ``attrs``: ``recommendation``, a sentence with the expected regret and how it was estimated;
        ``agreement``, criterion -> criterion -> rank correlation; ``localization`` and what was
        tried of it, ``neighbourhoods``; ``passes``, the cost of each criterion a candidate, in
        passes over the labelled data; ``read_first``.

    Raises:
        TypeError: a misspelt argument; one checkpoint, not several; criteria that are no list.
        ValueError: labels that are all alike; an unknown criterion; data that no checkpoint and not
            the module itself can be put through. A bad checkpoint raises nothing: its row says what
            is wrong.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> inputs = torch.randn(30, 2)
        >>> labels = (inputs[:, 0] > 0).long()
        >>> module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> rows = {"useful": [3.0, 0.0], "useless": [0.0, 3.0]}
        >>> states = {name: {"0.weight": torch.tensor([row, [0.0, 0.0]]), "0.bias": torch.zeros(2)}
        ...           for name, row in rows.items()}
        >>> table = choose_checkpoint(states, module, (inputs, labels), head="1", by="ridge_score",
        ...                           criteria=["ridge_score", "logme"])
        >>> list(table.index)
        ['useful', 'useless']
        >>> print(table.attrs["recommendation"][:14])
        Take 'useful'
    """
    named = named_checkpoints(checkpoints)
    fresh = FreshHead.named(head, head_precision)
    template = FlatNetwork(module)
    require_network(template)
    template.head_names(head)
    source = as_data(downstream)
    if not isinstance(source, TensorData):
        raise ValueError("downstream: give the labelled examples in memory, as (inputs, targets)")
    refuse_constant(source.targets)
    wanted = chosen_criteria(criteria, by, head, source.targets)
    options = ChainOptions(
        likelihood=likelihood,
        localization=NO_NEIGHBOURHOOD if localization == "auto" else localization,
        inverse_temperature=1.0,
        kernel=kernel,
        batch_size=None,
        num_chains=num_chains,
        length=RunLength(num_samples, warmup_steps),
        seed=seed,
        progress_bar=progress_bar,
        compile=compile,
    )
    networks, errors = Trial(source, None, options, fresh).come_through(template, named)
    rows: dict[str, dict[str, Any]] = {
        name: {"note": "", "error": errors.get(name, "")} for name in named
    }
    question = _Question(source, find_likelihood(likelihood), fresh, features, wanted)
    _add(rows, _read_off(networks, question))
    ladders = Ladders(template, source, options, num_rungs, fresh)
    attrs: dict[str, Any] = {}
    if networks and set(SAMPLED) & set(wanted):
        sampled = _sampled(networks, ladders, localization == "auto")
        _add(rows, sampled.columns)
        ladders, attrs = ladders.at(sampled.localization), sampled.attributes
    if networks and FINETUNED in wanted:
        _add(rows, _finetuned(networks, ladders))
    table = _ordered(rows, by, wanted)
    attrs["passes"] = _passes(wanted, ladders, table)
    attrs["agreement"] = agreement(table, wanted)
    attrs["recommendation"] = recommend(table, by, wanted, source.num_data)
    attrs["read_first"] = _about_labels(template, source) + READ_FIRST
    table.attrs.update(attrs)
    return table


def _add(rows: dict[str, dict[str, Any]], columns: Mapping[str, dict[str, Any]]) -> None:
    """Add columns to rows; notes and errors are joined."""
    for name, new in columns.items():
        for kind in ("note", "error"):
            texts = [rows[name].get(kind, ""), new.pop(kind, "")]
            rows[name][kind] = "; ".join(filter(None, texts))
        rows[name] |= new


def _read_off(
    networks: Mapping[str, FlatNetwork], question: _Question
) -> dict[str, dict[str, Any]]:
    """Compute what one pass gives; what keeps a checkpoint from it becomes a note."""
    if not set(question.wanted) & {*ZERO_SHOT, *ON_FEATURES}:
        return {}
    found: dict[str, dict[str, Any]] = {}
    head = None if question.head is None else question.head.name
    for name, network in networks.items():
        try:
            layer = feature_layer(network, question.features, head)
            found[name] = dict(
                label_columns(network, question.source, question.likelihood, layer, question.wanted)
            )
        except Exception as error:
            found[name] = {"note": f"no criteria on its features: {in_words(error)}"}
    return found


def _sampled(
    networks: Mapping[str, FlatNetwork], ladders: Ladders, choose_localization: bool
) -> Sampled:
    """Integrate all free energies; where no γ can be chosen, that becomes their note."""
    try:
        return sample_all(networks, ladders, choose_localization=choose_localization)
    except Exception as error:
        columns = {name: {"note": f"no free energy: {in_words(error)}"} for name in networks}
        return Sampled(columns, float(ladders.options.localization), None)


def _finetuned(networks: Mapping[str, FlatNetwork], ladders: Ladders) -> dict[str, dict[str, Any]]:
    """Fine-tune by halves; what fails in a lot becomes the note of its checkpoints."""
    lots: dict[tuple[str, ...], ShortFinetunes] = {}
    failed: dict[str, dict[str, Any]] = {}
    assert isinstance(ladders.source, TensorData)
    for names in side_by_side(networks, 1):
        shared = networks[names[0]]
        anchors = torch.stack([networks[name].anchor for name in names])
        try:
            program, _ = program_and_kernel(shared, ladders.source, ladders.options, ladders.head)
            lots[tuple(names)] = ShortFinetunes(program, shared, anchors, ladders.source)
        except Exception as error:
            failed |= {name: {"note": f"no fine-tunes: {in_words(error)}"} for name in names}
    found = by_halves(lots) if lots else {}
    return failed | {
        name: {
            "finetune_loss": one.loss.value,
            "finetune_loss_error": one.loss.error,
            "finetune_score": one.score.value,
            "finetune_score_error": one.score.error,
            "finetune_steps": one.num_steps,
        }
        for name, one in found.items()
    }


def _ordered(
    rows: Mapping[str, Mapping[str, Any]], by: str, wanted: tuple[str, ...]
) -> pd.DataFrame:
    """Sort: those to be trusted before the others, by the criterion; those that failed last."""
    names = [name for one in wanted for name in (one, f"{one}_error")]
    if set(SAMPLED) & set(wanted):
        names += ["r_hat", "ess"]
    if FINETUNED in wanted:
        names += ["finetune_score", "finetune_score_error", "finetune_steps"]
    table = pd.DataFrame(list(rows.values()), index=list(rows), columns=[*names, "note", "error"])
    table.index.name = "checkpoint"
    numbers = table.columns.drop(["note", "error"])
    table[numbers] = table[numbers].astype(float)
    keys = pd.DataFrame({"untrusted": ~trusted(table, by), "value": oriented(table, by)})
    if by == FINETUNED:  # those stopped early are behind those that went on
        keys["untrusted"] = -table["finetune_steps"]
    order = keys.sort_values(["untrusted", "value"], kind="stable", na_position="last").index
    return table.loc[order]


def _passes(wanted: tuple[str, ...], ladders: Ladders, table: pd.DataFrame) -> dict[str, float]:
    """Count passes over the labelled data, a candidate, of each criterion."""
    length = ladders.options.length
    assert length is not None
    chains = ladders.num_rungs * ladders.options.num_chains
    sampled = float(chains * length.num_steps * PASSES_A_GRADIENT)
    found = {name: sampled if name in SAMPLED else 1.0 for name in wanted}
    if FINETUNED in wanted:
        from ppl_fe.free_energy.downstream.short_finetunes import LEARNING_RATES, NUM_FOLDS

        steps = float(np.nan_to_num(table["finetune_steps"].mean()))
        found[FINETUNED] = steps * len(LEARNING_RATES) * (NUM_FOLDS - 1) * PASSES_A_GRADIENT
    return found


def _about_labels(network: FlatNetwork, source: TensorData) -> str:
    """Warn of classes that no label shows."""
    if not is_classes(source.targets):
        return ""
    with torch.no_grad():
        try:
            one = pytree.tree_map(lambda value: value[:1], source.inputs)
            output: Tensor = network(network.anchor, one)
        except Exception:
            return ""
    seen, all_classes = len(classes_of(source.targets)), output.shape[-1]
    if seen >= all_classes:
        return ""
    return (
        f"The {source.num_data} labels show {seen} of the head's {all_classes} classes: nothing "
        "here knows how a checkpoint tells the others apart. "
    )
