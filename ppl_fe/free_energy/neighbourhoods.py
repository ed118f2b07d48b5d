"""How far from its checkpoint a posterior may go: γ, chosen by the evidence of the data.

−log Z has its localiser normalised, so that it is a log marginal likelihood at every γ, and those
of several γ can be compared: too narrow a neighbourhood leaves out what fits the data, too wide a
one spreads its mass over what does not.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isfinite, log10
from typing import NamedTuple

import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from ppl_fe.diagnostics.checks.mixing import errors_believed
from ppl_fe.diverged import DivergedError
from ppl_fe.free_energy.ladders import Climbed, Ladders

PER_DECADE = 2  # γ = ... 3.16, 10, 31.6, ...
MOST_TRIED = 9


class Neighbourhoods(NamedTuple):
    """What was tried.

    best: γ. found: what the ladders came to there. draws: theirs. tried: one row a γ, in rising
        order: localization, free_energy (mean over checkpoints), mcse, r_hat, ess.
    """

    best: float
    found: list[Climbed]
    draws: xr.DataTree
    tried: pd.DataFrame


def best_neighbourhood(ladders: Ladders, anchors: Tensor) -> Neighbourhoods:
    """Find the γ of the largest evidence, one for all checkpoints, by their mean −log Z.

    From where the neighbourhood is as wide as the weights are large, by factors of √10, until both
    neighbours of the best are worse. A γ whose chains have not mixed is not chosen.

    Args:
        ladders: what is integrated; its own γ does not matter.
        anchors: (G, D) checkpoints.

    Raises:
        DivergedError: no γ tried gave chains that mixed.
    """
    climbed: dict[int, list[Climbed]] = {}
    least, kept = inf, xr.DataTree()

    def free_energy(place: int) -> float:
        nonlocal least, kept
        try:
            found, draws = ladders.at(_at(place)).climb(anchors)
        except DivergedError:
            return inf
        climbed[place] = found
        believed = all(errors_believed(one.r_hat, one.ess) for one in found)
        value = sum(one.free_energy for one in found) / len(found) if believed else inf
        if value < least:  # those of every γ would take much memory
            least, kept = value, draws
        return value

    values = descend(free_energy, round(PER_DECADE * log10(natural_localization(ladders, anchors))))
    best = min(values, key=lambda place: values[place])
    if not isfinite(values[best]):
        tried = ", ".join(f"{_at(place):.3g}" for place in sorted(values))
        raise DivergedError(
            f"localization='auto': the chains mixed at none of γ = {tried}; raise num_samples, or "
            "give localization as a number"
        )
    rows = [_row(_at(place), climbed[place]) for place in sorted(climbed)]
    return Neighbourhoods(_at(best), climbed[best], kept, pd.DataFrame(rows))


def descend(value: Callable[[int], float], start: int) -> dict[int, float]:
    """Evaluate a function of integers from a start until the least has both neighbours beside it.

    Args:
        value: infinite where it has none.
        start: where to begin.

    Returns:
        Place -> value, `MOST_TRIED` of them at most.

    Example:
        >>> found = descend(lambda place: abs(place - 4), 0)
        >>> sorted(found), min(found, key=lambda place: found[place])
        ([0, 1, 2, 3, 4, 5], 4)
    """
    known: dict[int, float] = {}
    missing = [start, start + 1, start - 1]
    while missing and len(known) < MOST_TRIED:
        known[missing[0]] = value(missing[0])
        best = min(known, key=lambda place: known[place])
        if not isfinite(known[best]):  # narrower neighbourhoods mix sooner
            best = max(known)
        missing = [place for place in (best, best + 1, best - 1) if place not in known]
    return known


def natural_localization(ladders: Ladders, anchors: Tensor) -> float:
    """Give γ = D/‖w*‖² of the localised weights, at which they may move by their own size."""
    network, head = ladders.network, ladders.head
    inside = network.head_names(None if head is None else head.name)
    outside = [network.slices[name] for name in network.names if name not in inside]
    weights = torch.cat([anchors[:, part] for part in outside], 1).double()
    mean_square = float(weights.square().mean())
    return 1 / mean_square if mean_square > 0 else 1.0


def _at(place: int) -> float:
    return float(10 ** (place / PER_DECADE))


def _row(localization: float, found: list[Climbed]) -> dict[str, float]:
    count = len(found)
    return {
        "localization": localization,
        "free_energy": sum(one.free_energy for one in found) / count,
        "mcse": sum(one.mcse**2 for one in found) ** 0.5 / count,
        "r_hat": max(one.r_hat for one in found),
        "ess": min(one.ess for one in found),
    }
