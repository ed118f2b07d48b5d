"""The downstream free energy of all candidates, at one γ."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import pandas as pd

from ppl_fe.free_energy.candidates import in_words
from ppl_fe.free_energy.downstream.recommendation import MOST_R_HAT
from ppl_fe.free_energy.ladders import Climbed, Ladders
from ppl_fe.free_energy.lots import anchors_of, side_by_side
from ppl_fe.free_energy.neighbourhoods import best_neighbourhood
from ppl_fe.networks.flat import FlatNetwork

MOST_TO_CHOOSE_BY = 4  # candidates whose evidence chooses γ


class Sampled(NamedTuple):
    """columns: of each candidate, or its error. localization: γ. tried: what it was chosen of."""

    columns: dict[str, dict[str, Any]]
    localization: float
    tried: pd.DataFrame | None

    @property
    def attributes(self) -> dict[str, Any]:
        """Give what the table's `attrs` say of γ."""
        if self.tried is None:
            return {"localization": self.localization}
        tried = self.tried.to_dict("list")
        return {"localization": self.localization, "neighbourhoods": tried}


def sample_all(
    networks: Mapping[str, FlatNetwork], ladders: Ladders, *, choose_localization: bool
) -> Sampled:
    """Integrate the free energy of every candidate.

    Args:
        networks: the candidates, at least one.
        ladders: what is integrated; the network in it gives way to the candidates'.
        choose_localization: whether γ is the one of the largest mean evidence of up to four
            candidates, spread evenly over the order that they came in.

    Raises:
        DivergedError: γ was to be chosen, and at none the chains have mixed.
    """
    tried = None
    if choose_localization:
        alike = side_by_side(networks, 1)[0]
        count = min(len(alike), MOST_TO_CHOOSE_BY)
        some = [alike[k * len(alike) // count] for k in range(count)]
        found = best_neighbourhood(
            replace(ladders, network=networks[some[0]]), anchors_of(networks[name] for name in some)
        )
        ladders, tried = ladders.at(found.best), found.tried
    columns: dict[str, dict[str, Any]] = {}
    lots = deque(side_by_side(networks, ladders.num_rungs * ladders.options.num_chains))
    while lots:
        names = lots.popleft()
        own = replace(ladders, network=networks[names[0]])
        try:
            climbed, _ = own.climb(anchors_of(networks[name] for name in names))
        except Exception as error:  # whatever one of them can raise
            if len(names) == 1:
                columns[names[0]] = {"error": in_words(error)}
            else:
                lots.extend([name] for name in names)
        else:
            columns |= {name: _row(one) for name, one in zip(names, climbed, strict=True)}
    return Sampled(columns, float(ladders.options.localization), tried)


def _row(found: Climbed) -> dict[str, Any]:
    last = found.ladder.iloc[-1]
    note = ""
    if not found.r_hat < MOST_R_HAT:
        note = (
            f"not mixed: R-hat {found.r_hat:.2f} at a rung of the ladder (below {MOST_R_HAT} if "
            "mixed), so that this row is not recommended; raise num_samples or localization"
        )
    return {
        "free_energy": found.free_energy,
        "free_energy_error": found.mcse,
        "expected_loss": float(last["energy"]),
        "expected_loss_error": float(last["energy_mcse"]),
        "r_hat": found.r_hat,
        "ess": found.ess,
        "note": note,
    }
