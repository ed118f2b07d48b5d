"""The rows of a ranking put in order: the chance of each to be best, and what to read first."""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from typing import Any

import numpy as np
import pandas as pd

from ppl_fe.diagnostics.checks.mixing import errors_believed
from ppl_fe.free_energy.estimate import FreeEnergyEstimate
from ppl_fe.free_energy.racing import Outcome, probability_of_lowest
from ppl_fe.free_energy.ranking_table import RankingTable
from ppl_fe.networks.matching import listed

COLUMNS = [
    "wbic",
    "wbic_mcse",
    "llc",
    "llc_mcse",
    "anchor_loss",
    "r_hat",
    "ess",
    "passes",
    "p_best",
]

READ_FIRST = (
    "Lower WBIC is claimed to mean better transfer. The argument needs checkpoints at a minimum "
    "of comparable training loss, and downstream data whose density ratio to the pretraining "
    "data is bounded. `ppl-fe demo` and benchmarks/cifar_fs.py show what happens where that "
    "fails: on new classes the sign can turn round. Compare with the baselines before you choose."
)


def row_of(estimate: FreeEnergyEstimate, passes: float, loss: float | None) -> dict[str, Any]:
    """Write the columns of one checkpoint.

    Args:
        estimate: of its chains.
        passes: over the data, that these took.
        loss: on held-out data; None for no such data.
    """
    names = [column for column in COLUMNS if column not in ("passes", "p_best")]
    row = {name: getattr(estimate, name) for name in names}
    row |= {"passes": passes, "note": "; ".join(estimate.notes)}
    if loss is not None:
        n = estimate.num_data
        row |= {"validation_loss": loss, "held_out": n * loss + estimate.llc * log(n)}
    return row


def table_of(
    rows: Mapping[str, Mapping[str, Any]],
    seed: int,
    num_data: int,
    outcome: Outcome | None = None,
) -> pd.DataFrame:
    """Put the rows in order, best first, with their probabilities and what to read first.

    Args:
        rows: name -> its columns, `note` and `error` among them.
        seed: of the draws that p_best is counted from.
        num_data: n.
        outcome: of a race; None (default) where each checkpoint ran until it was done.
    """
    table = pd.DataFrame(list(rows.values()), index=list(rows), columns=_ordered(rows))
    table.index.name = "checkpoint"
    known = table["wbic"].notna() & table["wbic_mcse"].notna()
    believed = known & np.array(list(map(errors_believed, table["r_hat"], table["ess"])))
    if believed.any():
        chosen = table.loc[believed]
        table.loc[believed, "p_best"] = probability_of_lowest(
            chosen["wbic"].tolist(), chosen["wbic_mcse"].tolist(), seed
        )
    table = RankingTable(table.sort_values(by="wbic", na_position="last", kind="stable"))
    warnings = [_no_probability(table), _unequal_losses(table, num_data)]
    table.attrs["cost"] = {"passes": float(table["passes"].astype(float).sum())}
    if outcome is not None:
        table.attrs["pilot"] = outcome.pilot
        names = ("settled", "alike", "small", "rounds")
        table.attrs["order"] = {name: getattr(outcome, name) for name in names}
        warnings.insert(1, _no_best(outcome))
    table.attrs["read_first"] = "".join(warnings) + READ_FIRST
    return table


def _no_best(outcome: Outcome) -> str:
    """Name the checkpoints among which a race has found no best one."""
    if outcome.settled or len(outcome.alike) < 2:
        return ""
    end = (
        ", and all of these are below what matters"
        if outcome.small
        else "; a larger localization, or more data, tells them apart sooner"
    )
    return f"No best one is told apart: {listed(outcome.alike)} lie within their errors{end}. "


def _no_probability(table: pd.DataFrame) -> str:
    """Name the checkpoints that have a place in the order, but no error bar to believe it by."""
    without = table.index[table["wbic"].notna() & table["p_best"].isna()]
    if not len(without):
        return ""
    names = listed([str(name) for name in without])
    return (
        f"The order is not settled: the chains of {names} have not mixed, so that their error "
        "bars and their places are worth nothing, and p_best is not given for them. "
    )


def _unequal_losses(table: pd.DataFrame, num_data: int) -> str:
    """Warn where the training losses alone explain most of the differences in WBIC."""
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
