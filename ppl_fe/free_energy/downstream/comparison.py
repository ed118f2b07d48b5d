"""The candidates of one architecture: rows, order, and what the table says of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ppl_fe.data.sources import TensorData
from ppl_fe.free_energy.candidates import Checkpoint, Trial, add_columns, in_words
from ppl_fe.free_energy.chain_options import ChainOptions
from ppl_fe.free_energy.downstream.consensus import consensus
from ppl_fe.free_energy.downstream.criteria import (
    CONSENSUS,
    FINETUNED,
    LINEARIZED,
    ON_FEATURES,
    SAMPLED,
    VOTERS,
    ZERO_SHOT,
    feature_layer,
    label_columns,
)
from ppl_fe.free_energy.downstream.labels import classes_of, is_classes
from ppl_fe.free_energy.downstream.linearized import Linearized, linearize_all
from ppl_fe.free_energy.downstream.recommendation import (
    agreement,
    oriented,
    recommend,
    trusted,
)
from ppl_fe.free_energy.downstream.sampled import Sampled, sample_all
from ppl_fe.free_energy.downstream.short_finetunes import (
    LEARNING_RATES,
    NUM_FOLDS,
    ShortFinetunes,
    by_halves,
)
from ppl_fe.free_energy.ladders import Ladders
from ppl_fe.free_energy.local_chains import FreshHead, program_and_kernel
from ppl_fe.free_energy.lot_work import Materials
from ppl_fe.free_energy.lots import anchors_of, side_by_side
from ppl_fe.free_energy.neighbourhoods import Free, natural_localization
from ppl_fe.free_energy.places import Elsewhere, Here, chosen_place
from ppl_fe.free_energy.ranking_table import RankingTable
from ppl_fe.inference.step.builder import BuiltSteps
from ppl_fe.models.likelihoods import find_likelihood
from ppl_fe.networks.flat import FlatNetwork
from ppl_fe.tasks.workers import Workers

PASSES_A_GRADIENT = 3  # a backward pass costs about two forward ones
READ_FIRST = (
    "Error bars of free_energy and expected_loss are Monte Carlo error, those of the other "
    "criteria are over the labels. benchmarks/results/few_labels.txt shows how well each foretold "
    "fine-tuning where that was tried."
)


@dataclass(frozen=True)
class Question:
    """What is asked of every candidate.

    Attributes:
        source: the labelled data.
        options: of the chains; γ in them is that of fine-tunes, too, where none is chosen.
        head: the fresh head, or None.
        features: the module whose inputs are the features; None for the usual one.
        wanted: the criteria.
        by: the one that orders.
        num_rungs: of the ladder.
        free: what the evidence chooses.
        workers: that run ladders; None for this process.
    """

    source: TensorData
    options: ChainOptions
    head: FreshHead | None
    features: str | None
    wanted: tuple[str, ...]
    by: str
    num_rungs: int
    free: tuple[Free, ...]
    workers: Workers | None = None


def compare(
    checkpoints: Mapping[str, Checkpoint], template: FlatNetwork, question: Question
) -> pd.DataFrame:
    """Compute all criteria of checkpoints of one architecture, order them, and recommend one.

    Args:
        checkpoints: by name.
        template: the architecture.
        question: what is asked.

    Raises:
        ValueError: data that no checkpoint and not the template itself can be put through.
    """
    steps = BuiltSteps()
    given = Materials(template, {}, question.source, steps, head=question.head)
    with chosen_place(question.workers, given, checkpoints, question.options) as place_of:
        return _compared(checkpoints, template, question, place_of, steps)


def _compared(
    checkpoints: Mapping[str, Checkpoint],
    template: FlatNetwork,
    question: Question,
    place_of: Callable[[Mapping[str, FlatNetwork]], Here | Elsewhere],
    steps: BuiltSteps,
) -> pd.DataFrame:
    source, wanted = question.source, question.wanted
    trial = Trial(source, None, question.options, question.head)
    networks, errors = trial.come_through(template, checkpoints)
    rows: dict[str, dict[str, Any]] = {
        name: {"note": "", "error": errors.get(name, "")} for name in checkpoints
    }
    add_columns(rows, _read_off(networks, question))
    ladders = Ladders(
        template, source, question.options, question.num_rungs, question.head, steps=steps
    )
    attrs, passes = dict[str, Any](), dict.fromkeys(wanted, 1.0)
    if networks and set(SAMPLED) & set(wanted):
        sampled = _sampled(networks, ladders, place_of(networks), question.free)
        add_columns(rows, sampled.columns)
        ladders, attrs = sampled.ladders, sampled.attributes
    if networks and set(LINEARIZED) & set(wanted):
        linearized = _linearized(networks, question)
        add_columns(rows, linearized.columns)
        passes |= dict.fromkeys(set(LINEARIZED) & set(wanted), linearized.passes)
        if linearized.place is not None:
            attrs["linearized_at"] = linearized.place._asdict()
    if networks and FINETUNED in wanted:
        add_columns(rows, _finetuned(networks, ladders))
    table = _ordered(rows, question)
    attrs["passes"] = passes | _passes(wanted, ladders, table)
    attrs["agreement"] = agreement(table, wanted)
    attrs["recommendation"] = recommend(table, question.by, wanted, source.num_data)
    why = [attrs.get(name, "") for name in ("localization_why", "head_precision_why")]
    said = [_about_labels(template, source), *why, READ_FIRST]
    attrs["read_first"] = " ".join(filter(None, said))
    table.attrs.update(attrs)
    return table


def _read_off(networks: Mapping[str, FlatNetwork], question: Question) -> dict[str, dict[str, Any]]:
    """Compute what one pass gives; what keeps a checkpoint from it becomes a note."""
    if not set(question.wanted) & {*ZERO_SHOT, *ON_FEATURES}:
        return {}
    found: dict[str, dict[str, Any]] = {}
    head = None if question.head is None else question.head.name
    likelihood = find_likelihood(question.options.likelihood)
    for name, network in networks.items():
        try:
            layer = feature_layer(network, question.features, head)
            found[name] = dict(
                label_columns(network, question.source, likelihood, layer, question.wanted)
            )
        except Exception as error:
            found[name] = {"note": f"no criteria on its features: {in_words(error)}"}
    return found


def _sampled(
    networks: Mapping[str, FlatNetwork],
    ladders: Ladders,
    place: Here | Elsewhere,
    free: tuple[Free, ...],
) -> Sampled:
    """Integrate all free energies; where no γ can be chosen, that becomes their note."""
    try:
        return sample_all(networks, ladders, place, free)
    except Exception as error:
        columns = {name: {"note": f"no free energy: {in_words(error)}"} for name in networks}
        return Sampled(columns, ladders, {})


def _linearized(networks: Mapping[str, FlatNetwork], question: Question) -> Linearized:
    """Linearise all candidates, where the evidence says if γ is to be chosen."""
    start = question.options.localization
    if "localization" in question.free:
        one = next(iter(networks.values()))
        anchors = torch.stack([network.anchor for network in networks.values()])
        start = natural_localization(one, question.head, anchors)
    likelihood = find_likelihood(question.options.likelihood)
    return linearize_all(networks, question.source, likelihood, question.head, start, question.free)


def _finetuned(networks: Mapping[str, FlatNetwork], ladders: Ladders) -> dict[str, dict[str, Any]]:
    """Fine-tune by halves; what fails in a lot becomes the note of its checkpoints."""
    lots: dict[tuple[str, ...], ShortFinetunes] = {}
    failed: dict[str, dict[str, Any]] = {}
    assert isinstance(ladders.source, TensorData)
    for names in side_by_side(networks, 1):
        shared = networks[names[0]]
        anchors = anchors_of(networks[name] for name in names)
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


def _ordered(rows: Mapping[str, Mapping[str, Any]], question: Question) -> pd.DataFrame:
    """Sort: those to be trusted before the others, by the criterion; those that failed last."""
    wanted, by, fresh = question.wanted, question.by, question.head is not None
    names = [name for one in wanted for name in (one, f"{one}_error")]
    if set(SAMPLED) & set(wanted):
        names += ["r_hat", "ess"]
    if FINETUNED in wanted:
        names += ["finetune_score", "finetune_score_error", "finetune_steps"]
    table = RankingTable(list(rows.values()), index=list(rows), columns=[*names, "note", "error"])
    table.index.name = "checkpoint"
    table[names] = table[names].astype(float)
    if set(VOTERS[fresh]) & set(wanted):
        value, error = consensus(table, wanted, fresh_head=fresh)
        table.insert(0, CONSENSUS, value)
        table.insert(1, f"{CONSENSUS}_error", error)
    keys = pd.DataFrame({"untrusted": ~trusted(table, by), "value": oriented(table, by)})
    if by == FINETUNED:  # those stopped early are behind those that went on
        keys["untrusted"] = -table["finetune_steps"]
    order = keys.sort_values(["untrusted", "value"], kind="stable", na_position="last").index
    return table.loc[order]


def _passes(wanted: tuple[str, ...], ladders: Ladders, table: pd.DataFrame) -> dict[str, float]:
    """Count passes over the labelled data, a candidate, of what takes gradients."""
    length = ladders.options.length
    assert length is not None
    chains = ladders.num_rungs * ladders.options.num_chains
    sampled = float(chains * length.num_steps * PASSES_A_GRADIENT)
    found = {name: sampled for name in wanted if name in SAMPLED}
    if FINETUNED in wanted:
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
        "here knows how a checkpoint tells the others apart."
    )
