"""Several checkpoints of one architecture, ranked by pretraining free energy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ppl_fe.data.sources import TensorData, as_data
from ppl_fe.free_energy.baselines.label_free import baselines
from ppl_fe.free_energy.estimate import FreeEnergyEstimate
from ppl_fe.free_energy.estimators import summarize_group
from ppl_fe.free_energy.local_chains import (
    DEFAULT_BATCH,
    DEFAULT_CHAINS,
    ChainOptions,
    held_out_loss,
    sample_local_posteriors,
)
from ppl_fe.inference.run.one_run import check_chains
from ppl_fe.networks.checkpoints import read_checkpoint
from ppl_fe.networks.flat import FlatNetwork

COLUMNS = ["wbic", "wbic_mcse", "llc", "llc_mcse", "anchor_loss", "r_hat", "ess", "p_best"]
# Side by side up to here: more chains a step save no time on a CPU and cost memory.
MOST_CHAINS, MOST_COORDINATES = 128, 5 * 10**7
NUM_SIMULATIONS = 20_000
LOT_SEEDS_APART = 10**6  # so that no lot repeats the chains of a ranking at the next seed

READ_FIRST = (
    "Lower WBIC is claimed to mean better transfer. The argument needs checkpoints at a minimum "
    "of comparable training loss, and downstream data whose density ratio to the pretraining "
    "data is bounded. `ppl-fe demo` and benchmarks/cifar_fs.py show what happens where that "
    "fails: on new classes the sign can turn round. Compare with the baselines before you choose."
)


def rank_checkpoints(
    checkpoints: Mapping[str, str | Path | Mapping[str, Tensor]],
    module: nn.Module,
    data: Any,
    *,
    held_out: Any = None,
    baseline_columns: bool = False,
    head: str | None = None,
    **options: Unpack[ChainOptions],
) -> pd.DataFrame:
    """Rank pretrained checkpoints by free energy, from pretraining data alone.

    Each checkpoint's WBIC = E[nL_n(w)] under its localised tempered posterior (see
    `estimate_free_energy`). Checkpoints run side by side as further chains of one vectorised step.

    Args:
        checkpoints: name -> file, folder or state dict, all of one architecture.
        module: the architecture; its own weights do not matter and are not changed.
        data: the pretraining data, as in `estimate_free_energy`.
        held_out: pretraining data that no checkpoint was trained on. Adds the columns
            `validation_loss` and `held_out`, n·K̂ + λ̂ log n with K̂ the held-out loss: the bound
            behind the criterion is stated in the population loss.
        baseline_columns: add geometric_complexity and neural_collapse; the training loss is the
            column anchor_loss.
        head: the module whose input counts as the features; default the last linear layer.
        **options: as in `estimate_free_energy`; `num_chains` a checkpoint. `save_to` is a new
            folder with one zarr store for each lot of checkpoints that ran side by side
            (`0.zarr`, `1.zarr`, ...), chains in the order of `checkpoints`.

    Returns:
        One row a checkpoint, best first: wbic, wbic_mcse, llc, llc_mcse, anchor_loss, r_hat, ess,
        p_best (the probability of the lowest WBIC given the standard errors; it knows
        nothing of transfer), note (read it before the number) and error (why there is no number).
        No row is ever lost. `table.attrs["read_first"]` says when the criterion is to be trusted.

    Raises:
        ValueError: no checkpoints; options out of range. A bad checkpoint raises nothing: its row
            says what is wrong.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> inputs = torch.randn(100, 2)
        >>> states = {f"w={w}": {"weight": torch.full((1, 2), w)} for w in (0.0, 1.0)}
        >>> table = rank_checkpoints(states, torch.nn.Linear(2, 1, bias=False),
        ...     (inputs, torch.zeros(100)), likelihood="normal", localization=100.0,
        ...     num_samples=100, progress_bar=False)
        >>> list(table.index)
        ['w=0.0', 'w=1.0']
    """
    if not checkpoints:
        raise ValueError("checkpoints is empty: give at least one name -> file or state dict")
    num_chains, seed = options.get("num_chains", DEFAULT_CHAINS), options.get("seed", 0)
    check_chains(num_chains, options.get("chain_method", "vectorized"))
    template = FlatNetwork(module)
    rows: dict[str, dict[str, Any]] = {name: {"note": "", "error": ""} for name in checkpoints}
    networks: dict[str, FlatNetwork] = {}
    for name, source in checkpoints.items():
        try:
            networks[name] = template.with_state(read_checkpoint(source))
        except (ValueError, OSError) as error:
            rows[name]["error"] = str(error)
    save_to = options.get("save_to")
    if save_to is not None and Path(save_to).exists():
        raise FileExistsError(f"save_to: {save_to} already exists; give a new folder")
    if baseline_columns:  # before the chains: what they cannot take should cost no hours
        tensors = as_data(data)
        if not isinstance(tensors, TensorData) or not isinstance(tensors.inputs, Tensor):
            raise ValueError("baseline_columns needs the data as a tuple of two tensors")
        for name, network in networks.items():
            rows[name] |= baselines(network, (tensors.inputs, tensors.targets), head=head)
    for lot, names in enumerate(_side_by_side(networks, num_chains)):
        shared = networks[names[0]]
        anchors = torch.stack([networks[name].anchor for name in names])
        own: ChainOptions = {
            **options,
            "seed": seed + lot * LOT_SEEDS_APART,
            "save_to": None if save_to is None else Path(save_to) / f"{lot}.zarr",
        }
        chains = sample_local_posteriors(shared, anchors, data, **own)
        losses = None
        if held_out is not None:
            losses = held_out_loss(
                shared,
                anchors,
                held_out,
                likelihood=options.get("likelihood", "categorical"),
                batch_size=options.get("batch_size", DEFAULT_BATCH),
            )
        for group, name in enumerate(names):
            try:
                estimate = summarize_group(chains, group)
            except FloatingPointError as error:
                rows[name]["error"] = str(error)
                continue
            rows[name] |= _row(estimate)
            if losses is not None:
                loss = float(losses[group])
                rows[name]["validation_loss"] = loss
                rows[name]["held_out"] = estimate.n * loss + estimate.llc * log(estimate.n)
    return _table(rows, seed, as_data(data).num_data)


def _row(estimate: FreeEnergyEstimate) -> dict[str, Any]:
    names = [column for column in COLUMNS if column != "p_best"]
    return {**{name: getattr(estimate, name) for name in names}, "note": "; ".join(estimate.notes)}


def _side_by_side(networks: Mapping[str, FlatNetwork], num_chains: int) -> list[list[str]]:
    """Names in lots that share their buffers and fit side by side."""
    lots: list[list[str]] = []
    for name, network in networks.items():
        chains = min(MOST_CHAINS, MOST_COORDINATES // network.num_parameters)
        most = max(1, chains // num_chains)
        for lot in lots:
            if len(lot) < most and _same_buffers(networks[lot[0]].module, network.module):
                lot.append(name)
                break
        else:
            lots.append([name])
    return lots


def _same_buffers(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.buffers(), second.buffers(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def probability_of_lowest(
    means: Sequence[float], errors: Sequence[float], seed: int = 0
) -> np.ndarray[Any, Any]:
    """P(each is the lowest) for independent N(mean, error²), by simulation.

    Example:
        >>> probability_of_lowest([0.0, 0.0, 50.0], [1.0, 1.0, 1.0]).round(1).tolist()
        [0.5, 0.5, 0.0]
    """
    generator = np.random.default_rng(seed)
    noise = generator.standard_normal((NUM_SIMULATIONS, len(means)))
    draws = np.asarray(means) + np.asarray(errors) * noise
    return np.bincount(draws.argmin(1), minlength=len(means)) / NUM_SIMULATIONS


def _table(rows: Mapping[str, Mapping[str, Any]], seed: int, num_data: int) -> pd.DataFrame:
    table = pd.DataFrame(list(rows.values()), index=list(rows), columns=_ordered(rows))
    table.index.name = "checkpoint"
    known = table["wbic"].notna() & table["wbic_mcse"].notna()
    if known.any():
        chosen = table.loc[known]
        table.loc[known, "p_best"] = probability_of_lowest(
            chosen["wbic"].tolist(), chosen["wbic_mcse"].tolist(), seed
        )
    table = table.sort_values(by="wbic", na_position="last", kind="stable")
    table.attrs["read_first"] = f"{_unequal_losses(table, num_data)}{READ_FIRST}"
    return table


def _unequal_losses(table: pd.DataFrame, num_data: int) -> str:
    """A warning where the training losses alone explain most of the differences in WBIC."""
    known = table[["anchor_loss", "wbic"]].astype(float).dropna()
    if len(known) < 2:
        return ""
    in_loss, in_wbic = num_data * np.ptp(known["anchor_loss"]), np.ptp(known["wbic"])
    if in_loss <= 0.5 * in_wbic:
        return ""
    return (
        f"The training losses are not comparable: nL(w*) alone spreads over {in_loss:.1f} nats, "
        f"WBIC over {in_wbic:.1f}, so this ranking is mostly the training loss. "
    )


def _ordered(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    further = dict.fromkeys(name for row in rows.values() for name in row)
    last = ["note", "error"]
    return [*COLUMNS, *(name for name in further if name not in [*COLUMNS, *last]), *last]
