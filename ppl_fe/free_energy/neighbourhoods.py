"""How far from its checkpoint a posterior may go: γ and a fresh head's prior, chosen by the data.

−log Z has localiser and prior normalised, so that it is a log marginal likelihood at every γ and
every precision of the head, and several can be compared: too narrow a neighbourhood leaves out what
fits the data, too wide a one spreads its mass over what does not. Of several candidates the γ of
the largest evidence may be so wide that they hardly differ there, by less than what chains of some
length can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import hypot, inf, isfinite, log10
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from ppl_fe.diagnostics.checks.mixing import LOOSE_R_HAT_LIMIT
from ppl_fe.diverged import DivergedError
from ppl_fe.free_energy.ladders import Climbed, Ladders
from ppl_fe.free_energy.local_chains import FreshHead
from ppl_fe.networks.flat import FlatNetwork

PER_DECADE = 2  # γ = ... 3.16, 10, 31.6, ...
MOST_TRIED = 9
# An error of a third of the spread: any correlation with −log Z is then 95 % of what it could be.
TELLING = 0.9
MOST_NARROWER = 3  # steps from the evidence's γ, each of which takes the ladders of all candidates


class Neighbourhoods(NamedTuple):
    """What was tried.

    best: γ. head_precision: of a fresh head's prior; None where there is no such head. found: what
        the ladders came to there. draws: theirs. tried: one row a neighbourhood, in rising order:
        localization, head_precision where that was chosen, free_energy (mean over checkpoints),
        mcse, r_hat, ess.
    """

    best: float
    head_precision: float | None
    found: list[Climbed]
    draws: xr.DataTree
    tried: pd.DataFrame


Free = Literal["localization", "head_precision"]


def best_neighbourhood(
    ladders: Ladders, anchors: Tensor, free: Sequence[Free] = ("localization",)
) -> Neighbourhoods:
    """Find the neighbourhood of the largest evidence, one for all checkpoints, by mean −log Z.

    γ from where the neighbourhood is as wide as the weights are large, by factors of √10, until
    both neighbours of the best are worse; the precision of the head's prior from 1, as long as such
    a factor gains more evidence than its error; and both in turn until neither moves. None is
    chosen in which the chains of half of the checkpoints, or more, have not mixed.

    Args:
        ladders: what is integrated; its own value of what is chosen does not matter. Of several
            checkpoints the rungs are placed anew in every neighbourhood, by the first of them.
        anchors: (G, D) checkpoints.
        free: what is chosen, γ alone by default.

    Raises:
        DivergedError: no neighbourhood tried gave chains that mixed.
    """
    climbed: dict[Place, list[Climbed]] = {}
    least, kept = inf, xr.DataTree()

    @cache
    def free_energy(place: Place) -> float:
        nonlocal least, kept
        own = ladders.at(*place)
        try:
            if len(anchors) > 1:
                own = own.placed(anchors[:1])
            found, draws = own.climb(anchors)
        except DivergedError:
            return inf
        climbed[place] = found
        # Few effective draws at one rung of some make an error, which is in `mcse`, and no mistake.
        mixed = sum(one.r_hat < LOOSE_R_HAT_LIMIT for one in found)
        value = (
            sum(one.free_energy for one in found) / len(found) if 2 * mixed > len(found) else inf
        )
        if value < least:  # those of every γ would take much memory
            least, kept = value, draws
        return value

    def error(place: Place) -> float:
        return mean_error(climbed[place]) if place in climbed else 0.0

    best = search(free_energy, _start(ladders, anchors, free), free, error)
    if not isfinite(free_energy(best)):
        tried = ", ".join(sorted({f"{place.localization:.3g}" for place in climbed}, key=float))
        raise DivergedError(
            f"localization='auto': the chains mixed at none of γ = {tried}; raise num_samples, or "
            "give localization as a number"
        )
    rows = [_row(place, climbed[place], free) for place in sorted(climbed)]
    return Neighbourhoods(*best, climbed[best], kept, pd.DataFrame(rows))


class Place(NamedTuple):
    """A neighbourhood: γ, and the precision of a fresh head's prior, None without one."""

    localization: float
    head_precision: float | None


def _start(ladders: Ladders, anchors: Tensor, free: Sequence[Free]) -> Place:
    """Give where to begin: what is chosen on the grid, the rest as it is given."""
    gamma, head = ladders.options.localization, ladders.head
    if "localization" in free:
        gamma = natural_localization(ladders.network, head, anchors)
    precision = None if head is None else head.precision
    return Place(gamma, 1.0 if "head_precision" in free else precision)


def search(
    free_energy: Callable[[Place], float],
    start: Place,
    free: Sequence[Free],
    error: Callable[[Place], float] = lambda place: 0.0,
) -> Place:
    """Choose γ and the precision in turn, until neither moves.

    Args:
        free_energy: place -> −log Z, in nats; infinite where it has none.
        start: where to begin, on the grid in what is chosen.
        free: what is chosen.
        error: place -> the Monte Carlo error of −log Z there; none by default.
    """
    best = start
    while True:
        before = best
        if "localization" in free:
            best = _least_along_gamma(free_energy, best)
        if "head_precision" in free:
            best = _while_it_gains(free_energy, error, best)
        if best == before or len(free) == 1:
            return best


def _least_along_gamma(free_energy: Callable[[Place], float], start: Place) -> Place:
    values = descend(lambda steps: free_energy(_moved(start, "localization", steps)), 0)
    return _moved(start, "localization", min(values, key=lambda steps: values[steps]))


def _while_it_gains(
    free_energy: Callable[[Place], float], error: Callable[[Place], float], start: Place
) -> Place:
    """Widen the head's prior step by step while a step gains more evidence than its error.

    Or narrow it, where widening gains nothing. Towards wide priors the evidence is nearly flat, and
    ladders down from them are ever harder to climb: noise would lead there.
    """
    best = start
    for direction in (-1, 1):
        for _ in range(MOST_TRIED):
            ahead = _moved(best, "head_precision", direction)
            gain = free_energy(best) - free_energy(ahead)
            if not gain > hypot(error(best), error(ahead)):
                break
            best = ahead
        if best != start:
            break
    return best


def _moved(place: Place, name: str, steps: int) -> Place:
    """Go so many steps of the grid along one of the two."""
    return place._replace(**{name: at(round(PER_DECADE * log10(getattr(place, name))) + steps)})


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


def telling(evident: float, told_at: Callable[[float], float]) -> dict[float, float]:
    """Try γ of the largest evidence, and narrower ones until −log Z tells the candidates apart.

    The evidence says which γ predicts the labels. The reliability alone would choose the narrowest
    of all: where nothing can move there is hardly an error, nor anything that could be learnt. So
    the nearest to the evidence is looked for at which it is `TELLING`.

    Args:
        evident: γ of the largest evidence.
        told_at: γ -> the reliability of all candidates' −log Z.

    Returns:
        γ -> its reliability, in rising order, `MOST_NARROWER` beside the first at most.

    Example:
        >>> {round(gamma, 3): told for gamma, told in telling(1.0, lambda gamma: gamma / 4).items()}
        {1.0: 0.25, 3.162: 0.7905694150420949, 10.0: 2.5}
    """
    start = round(PER_DECADE * log10(evident))
    found: dict[float, float] = {}
    for place in range(start, start + MOST_NARROWER + 1):
        found[at(place)] = told_at(at(place))
        if found[at(place)] >= TELLING:
            break
    return found


def reliability(values: Sequence[float], errors: Sequence[float]) -> float:
    """Give the share of the variance of values over candidates that is not that of their errors.

    Args:
        values: −log Z.
        errors: its Monte Carlo standard errors.

    Returns:
        Between 0, also of fewer than two candidates, and 1.

    Example:
        >>> reliability([1.0, 3.0, 5.0], [0.5, 0.5, 0.5])
        0.9375
    """
    variance = float(np.var(values, ddof=1)) if len(values) > 1 else 0.0
    noise = float(np.mean(np.square(errors))) if len(errors) else 0.0
    return max(0.0, 1 - noise / variance) if variance > 0 else 0.0


def natural_localization(network: FlatNetwork, head: FreshHead | None, anchors: Tensor) -> float:
    """Give the γ of the grid next to D/‖w*‖² of the localised weights: they move by their own size.

    Args:
        network: the architecture.
        head: the fresh head, which is not localised.
        anchors: (G, D) checkpoints.
    """
    inside = network.head_names(None if head is None else head.name)
    outside = [network.slices[name] for name in network.names if name not in inside]
    weights = torch.cat([anchors[:, part] for part in outside], 1).double()
    mean_square = float(weights.square().mean())
    return at(round(-PER_DECADE * log10(mean_square))) if mean_square > 0 else 1.0


def at(place: int) -> float:
    """Give the γ of a place on the grid."""
    return float(10 ** (place / PER_DECADE))


def mean_error(found: Sequence[Climbed]) -> float:
    """Give the Monte Carlo standard error of the mean −log Z of several checkpoints."""
    return hypot(*(one.mcse for one in found)) / len(found)


def _row(place: Place, found: list[Climbed], free: Sequence[Free]) -> dict[str, Any]:
    count = len(found)
    precision = {"head_precision": place.head_precision} if "head_precision" in free else {}
    return {
        "localization": place.localization,
        **precision,
        "free_energy": sum(one.free_energy for one in found) / count,
        "mcse": mean_error(found),
        "r_hat": max(one.r_hat for one in found),
        "ess": min(one.ess for one in found),
    }
