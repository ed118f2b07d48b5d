"""The downstream free energy of all candidates, at one γ."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import pandas as pd

from ppl_fe.diverged import DivergedError
from ppl_fe.free_energy.candidates import add_columns, in_words
from ppl_fe.free_energy.downstream.recommendation import MOST_R_HAT
from ppl_fe.free_energy.ladders import Climbed, Ladders
from ppl_fe.free_energy.lot_work import ladders as climb
from ppl_fe.free_energy.lots import Lot, anchors_of, side_by_side
from ppl_fe.free_energy.neighbourhoods import best_neighbourhood
from ppl_fe.free_energy.places import Elsewhere, Errand, Here
from ppl_fe.networks.flat import FlatNetwork

MOST_TO_CHOOSE_BY = 4  # candidates whose evidence chooses γ


class Sampled(NamedTuple):
    """What the ladders came to.

    columns: of each candidate, or its error. localization: γ. tried: what it was chosen of, and why
        in words; None where it was given.
    """

    columns: dict[str, dict[str, Any]]
    localization: float
    tried: pd.DataFrame | None
    why: str = ""

    @property
    def attributes(self) -> dict[str, Any]:
        """Give what the table's `attrs` say of γ."""
        if self.tried is None:
            return {"localization": self.localization}
        tried = self.tried.to_dict("list")
        return {
            "localization": self.localization,
            "neighbourhoods": tried,
            "localization_why": self.why,
        }


def sample_all(
    networks: Mapping[str, FlatNetwork],
    ladders: Ladders,
    place: Here | Elsewhere,
    *,
    choose_localization: bool,
) -> Sampled:
    """Integrate the free energy of every candidate.

    Args:
        networks: the candidates, at least one.
        ladders: what is integrated; the network in it gives way to the candidates'.
        place: where lots of candidates run, once γ is known.
        choose_localization: whether γ is chosen, by up to four candidates, spread evenly over the
            order that they came in (`best_neighbourhood`).

    Raises:
        DivergedError: γ was to be chosen, and at none the chains have mixed.
    """
    tried, why = None, ""
    alike = side_by_side(networks, 1)[0]
    if choose_localization:
        count = min(len(alike), MOST_TO_CHOOSE_BY)
        some = [alike[k * len(alike) // count] for k in range(count)]
        found = best_neighbourhood(
            replace(ladders, network=networks[some[0]]), anchors_of(networks[name] for name in some)
        )
        ladders, tried, why = ladders.at(found.best), found.tried, found.why
    rungs = _rungs(ladders, networks[alike[0]])
    columns: dict[str, dict[str, Any]] = {}
    lots = list(side_by_side(networks, ladders.num_rungs * ladders.options.num_chains))
    while lots:
        wave = [Lot(number, names, lambda: ladders.options) for number, names in enumerate(lots)]
        lots = []
        for lot, found in place.run(climb, [Errand(lot, (rungs,)) for lot in wave]):
            if not isinstance(found, Exception):
                columns |= {name: _row(one) for name, one in found.items()}
            elif len(lot.names) == 1:
                columns[lot.names[0]] = {"error": in_words(found)}
            else:
                lots += [[name] for name in lot.names]
    add_columns(columns, {name: {"note": said} for name, said in place.tried.items()})
    return Sampled(columns, float(ladders.options.localization), tried, why)


def _rungs(ladders: Ladders, network: FlatNetwork) -> tuple[float, ...]:
    """Place the rungs by one candidate; where its chains diverge, where they usually are."""
    own = replace(ladders, network=network)
    with suppress(DivergedError):
        own = own.placed(network.anchor[None])
    return tuple(own.rungs.tolist())


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
