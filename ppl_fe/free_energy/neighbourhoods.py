"""How far from its checkpoint a posterior may go: γ, chosen by the data.

−log Z has its localiser normalised, so that it is a log marginal likelihood at every γ, and those
of several γ can be compared: too narrow a neighbourhood leaves out what fits the data, too wide a
one spreads its mass over what does not. Of several candidates the γ of the largest evidence may be
so wide that they hardly differ there, by less than what chains of some length can tell.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isfinite, log10, nan
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from ppl_fe.diagnostics.checks.mixing import errors_believed
from ppl_fe.diverged import DivergedError
from ppl_fe.free_energy.ladders import Climbed, Ladders

PER_DECADE = 2  # γ = ... 3.16, 10, 31.6, ...
MOST_TRIED = 9
# An error of a third of the spread: any correlation with −log Z is then 95 % of what it could be.
TELLING = 0.9


class Neighbourhoods(NamedTuple):
    """What was tried.

    best: γ. found: what the ladders came to there. tried: one row a γ, in rising order:
        localization, free_energy (mean over checkpoints), mcse, r_hat, ess, and reliability, NaN of
        a single checkpoint. draws: at the γ of the largest evidence. why: that γ, in words.
    """

    best: float
    found: list[Climbed]
    tried: pd.DataFrame
    draws: xr.DataTree
    why: str


class Search:
    """Climb ladders at one γ after the other, on a grid of places, `PER_DECADE` a decade.

    Args:
        ladders: what is integrated; its own γ does not matter.
        anchors: (G, D) checkpoints.

    Attributes:
        climbed: place -> what was found there.
        draws: where the evidence is the largest so far.
    """

    def __init__(self, ladders: Ladders, anchors: Tensor) -> None:
        self.ladders, self.anchors = ladders, anchors
        self.climbed: dict[int, list[Climbed]] = {}
        self.draws = xr.DataTree()
        self._known: dict[int, float] = {}

    def free_energy(self, place: int) -> float:
        """Give the mean −log Z of the checkpoints; infinite where their chains have not mixed."""
        if place not in self._known:
            least = min(self._known.values(), default=inf)
            found, draws = self._climb(place)
            mixed = bool(found) and all(errors_believed(one.r_hat, one.ess) for one in found)
            value = sum(one.free_energy for one in found) / len(found) if mixed else inf
            if value < least:  # those of every γ would take much memory
                self.draws = draws
            self._known[place] = value
        return self._known[place]

    def _climb(self, place: int) -> tuple[list[Climbed], xr.DataTree]:
        ladders = self.ladders.at(at(place))
        try:
            if len(self.anchors) > 1:
                ladders = ladders.placed(self.anchors[:1])
            found, draws = ladders.climb(self.anchors)
        except DivergedError:
            return [], xr.DataTree()
        self.climbed[place] = found
        return found, draws

    def evident(self) -> int:
        """Find the place of the largest evidence.

        Raises:
            DivergedError: the chains mixed at no γ that was tried.
        """
        natural = natural_localization(self.ladders, self.anchors)
        values = descend(self.free_energy, round(PER_DECADE * log10(natural)))
        best = min(values, key=lambda place: values[place])
        if not isfinite(values[best]):
            tried = ", ".join(f"{at(place):.3g}" for place in sorted(values))
            raise DivergedError(
                f"localization='auto': the chains mixed at none of γ = {tried}; raise num_samples, "
                "or give localization as a number"
            )
        return best

    def reliability(self, place: int) -> float:
        """Give `reliability` there, 0 where the chains have not mixed."""
        return reliability(self.climbed[place]) if isfinite(self.free_energy(place)) else 0.0

    def result(self, place: int, why: str) -> Neighbourhoods:
        """Say what was found there, and what was tried."""
        rows = [_row(at(one), self.climbed[one]) for one in sorted(self.climbed)]
        return Neighbourhoods(at(place), self.climbed[place], pd.DataFrame(rows), self.draws, why)


def best_neighbourhood(ladders: Ladders, anchors: Tensor) -> Neighbourhoods:
    """Find γ for all checkpoints: of the largest evidence, or narrower where that tells none apart.

    The evidence, the mean −log Z, is followed from where the neighbourhood is as wide as the
    weights are large, by factors of √10, until both neighbours of the best are worse. From there
    narrower ones are tried until the reliability of −log Z is `TELLING`; if it is so at none, the
    most reliable of them is taken. It is not the most reliable of all γ that is looked for: where
    nothing can move there is hardly an error, nor anything that a checkpoint could learn.

    A γ whose chains have not mixed is not chosen; of one checkpoint the evidence alone decides.

    Args:
        ladders: what is integrated; its own γ does not matter. Of several checkpoints its rungs are
            placed anew at every γ, by the first of them.
        anchors: (G, D) checkpoints.

    Raises:
        DivergedError: no γ tried gave chains that mixed.
    """
    search = Search(ladders, anchors)
    evident = search.evident()
    if len(anchors) == 1:
        return search.result(evident, "by the data's evidence")
    places = [evident]
    while search.reliability(places[-1]) < TELLING and len(places) < MOST_TRIED:
        places.append(places[-1] + 1)
    best = max(places, key=search.reliability)  # of equals the first, the widest
    said = f"γ = {at(best):.3g}: the labels are likeliest at {at(evident):.3g}"
    if best != evident:
        share = _share_in_words(search.reliability(evident))
        said += f", where −log Z hardly tells the candidates apart ({share}), and here it does"
    return search.result(best, f"{said} ({_share_in_words(search.reliability(best))}).")


def reliability(found: list[Climbed]) -> float:
    """Give the share of the variance of −log Z over checkpoints that is not Monte Carlo error.

    Example:
        >>> rung = pd.DataFrame()
        >>> round(reliability([Climbed(value, 0.5, 0.0, rung) for value in (1.0, 3.0, 5.0)]), 4)
        0.9375
    """
    variance = float(np.var([one.free_energy for one in found], ddof=1)) if len(found) > 1 else 0.0
    noise = float(np.mean([one.mcse**2 for one in found]))
    return max(0.0, 1 - noise / variance) if variance > 0 else 0.0


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


def at(place: int) -> float:
    """Give the γ of a place on the grid."""
    return float(10 ** (place / PER_DECADE))


def _share_in_words(told: float) -> str:
    return f"its error is {(1 - told) ** 0.5:.2f} of their spread"


def _row(localization: float, found: list[Climbed]) -> dict[str, float]:
    count = len(found)
    return {
        "localization": localization,
        "free_energy": sum(one.free_energy for one in found) / count,
        "mcse": sum(one.mcse**2 for one in found) ** 0.5 / count,
        "r_hat": max(one.r_hat for one in found),
        "ess": min(one.ess for one in found),
        "reliability": reliability(found) if count > 1 else nan,
    }
