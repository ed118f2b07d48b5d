"""The downstream free energy of all candidates, in one neighbourhood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from math import inf
from typing import Any, NamedTuple

from ppl_fe.diagnostics.checks.mixing import LOOSE_R_HAT_LIMIT
from ppl_fe.diverged import DivergedError
from ppl_fe.free_energy.candidates import add_columns, in_words
from ppl_fe.free_energy.downstream.recommendation import MOST_R_HAT
from ppl_fe.free_energy.ladders import Climbed, Ladders
from ppl_fe.free_energy.lot_work import ladders as climb
from ppl_fe.free_energy.lots import (
    MOST_TO_CHOOSE_BY,
    Lot,
    anchors_of,
    side_by_side,
    spread_evenly,
)
from ppl_fe.free_energy.neighbourhoods import (
    Free,
    Neighbourhoods,
    best_neighbourhood,
    reliability,
    telling,
)
from ppl_fe.free_energy.places import Elsewhere, Errand, Here
from ppl_fe.networks.flat import FlatNetwork

CHOOSING = 4  # their chains are so many times shorter: nats between neighbourhoods are soon seen


class Sampled(NamedTuple):
    """What the ladders came to.

    columns: of each candidate, or its error. ladders: at the γ and the head's precision that they
        were climbed at. choice: what the table's `attrs` say of how these were chosen; empty where
        they were given.
    """

    columns: dict[str, dict[str, Any]]
    ladders: Ladders
    choice: dict[str, Any]

    @property
    def attributes(self) -> dict[str, Any]:
        """Give what the table's `attrs` say of the neighbourhood."""
        head = self.ladders.head
        precision = {} if head is None else {"head_precision": head.precision}
        return {"localization": self.ladders.options.localization, **precision, **self.choice}


def sample_all(
    networks: Mapping[str, FlatNetwork],
    ladders: Ladders,
    place: Here | Elsewhere,
    free: Sequence[Free],
) -> Sampled:
    """Integrate the free energy of every candidate.

    Args:
        networks: the candidates, at least one.
        ladders: what is integrated; the network in it gives way to the candidates'.
        place: where lots of candidates run.
        free: what is chosen: of the largest mean evidence of up to four candidates, spread evenly
            over the order that they came in, or if that does not tell all candidates apart at the
            first narrower γ that does.

    Raises:
        DivergedError: something was to be chosen, and nowhere the chains have mixed.
    """
    if not free:
        return Sampled(_climb_all(networks, ladders, place), ladders, {})
    evident = _most_evident(networks, ladders, free)
    ladders = ladders.at(evident.best, evident.head_precision)
    choice: dict[str, Any] = {"neighbourhoods": evident.tried.to_dict("list")}
    if "head_precision" in free:
        choice["head_precision_why"] = (
            f"The head's prior has a precision of {evident.head_precision:.3g}, by the evidence."
        )
    if "localization" not in free:
        return Sampled(_climb_all(networks, ladders, place), ladders, choice)
    all_columns: dict[float, dict[str, dict[str, Any]]] = {}

    def told_at(gamma: float) -> float:
        all_columns[gamma] = columns = _climb_all(networks, ladders.at(gamma), place)
        return _reliability(columns)

    told = (
        telling(evident.best, told_at)
        if len(networks) > 1
        else {evident.best: told_at(evident.best)}
    )
    best = max(told, key=lambda gamma: told[gamma])  # of equals the widest
    choice |= {"reliability": told, "localization_why": _why(evident.best, best, told)}
    return Sampled(all_columns[best], ladders.at(best), choice)


def _most_evident(
    networks: Mapping[str, FlatNetwork], ladders: Ladders, free: Sequence[Free]
) -> Neighbourhoods:
    """Choose by some of the candidates, on shorter chains."""
    some = spread_evenly(side_by_side(networks, 1)[0], MOST_TO_CHOOSE_BY)
    length = ladders.options.length
    assert length is not None
    shorter = replace(length, num_samples=max(1, length.num_samples // CHOOSING))
    options = replace(ladders.options, length=shorter)
    own = replace(ladders, network=networks[some[0]], options=options)
    return best_neighbourhood(own, anchors_of(networks[name] for name in some), free)


def _climb_all(
    networks: Mapping[str, FlatNetwork], ladders: Ladders, place: Here | Elsewhere
) -> dict[str, dict[str, Any]]:
    """Give the columns of every candidate at the γ of the ladders."""
    rungs = _rungs(ladders, networks[side_by_side(networks, 1)[0][0]])
    columns: dict[str, dict[str, Any]] = {}
    lots = list(side_by_side(networks, ladders.num_rungs * ladders.options.num_chains))
    while lots:
        wave = [Lot(number, names, lambda: ladders.options) for number, names in enumerate(lots)]
        lots = []
        for lot, found in place.run(climb, [Errand(lot, (rungs, ladders.head)) for lot in wave]):
            if not isinstance(found, Exception):
                columns |= {name: _row(one) for name, one in found.items()}
            elif len(lot.names) == 1:
                columns[lot.names[0]] = {"error": in_words(found)}
            else:
                lots += [[name] for name in lot.names]
    add_columns(columns, {name: {"note": said} for name, said in place.tried.items()})
    return columns


def _reliability(columns: Mapping[str, Mapping[str, Any]]) -> float:
    """Give it of the candidates whose chains agree, 0 if that is less than half."""
    good = [one for one in columns.values() if one.get("r_hat", inf) < LOOSE_R_HAT_LIMIT]
    if 2 * len(good) < len(columns):
        return 0.0
    return reliability(
        [one["free_energy"] for one in good], [one["free_energy_error"] for one in good]
    )


def _why(evident: float, best: float, told: Mapping[float, float]) -> str:
    """Say why γ is what it is."""
    shares = {gamma: f"{(1 - share) ** 0.5:.2f}" for gamma, share in told.items()}
    said = f"γ = {best:.3g}: the labels are likeliest at {evident:.3g}"
    if not any(told.values()):
        return f"{said}, and no γ tells candidates apart."
    if len(told) == 1:
        return f"{said}, where the error of −log Z is {shares[best]} of its spread over candidates."
    return (
        f"{said}, where the error of −log Z is {shares[evident]} of its spread over candidates; "
        f"here it is {shares[best]}."
    )


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
            "mixed), so that it does not count towards what is recommended; raise num_samples or "
            "localization"
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
