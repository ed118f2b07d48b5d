"""A race for the lowest free energy: checkpoints far behind leave it, the others take more draws.

1. A pilot of all: until each loss has an R-hat of 1.05 and an ESS of 100, a quarter of what an
   estimate by itself takes.
2. The probability of each to be the lowest is simulated from the standard errors. Below 1 % a
   checkpoint leaves the field. So does, with the result it has, one whose error is below what
   matters: a standard error of half a nat, since a nat between two checkpoints is a Bayes factor of
   e, "not worth more than a bare mention" (Kass & Raftery 1995), or of 2 % of what WBIC has above
   nL(w*), at which an estimate by itself ends.
3. Those left go on where their chains are until they have twice as many draws, and so on: until one
   has a probability above 95 %, nobody is left, or the steps of an estimate are spent.

Nothing in it is a clock, so that equal seeds run equal races.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from ppl_fe.diagnostics.checks.mixing import errors_believed
from ppl_fe.free_energy.contenders import Contender, Heat
from ppl_fe.free_energy.estimate import FreeEnergyEstimate
from ppl_fe.inference.targets import ERROR_LIMIT

LEFT, WON = 0.01, 0.95
MATTERS = 0.5  # nats of standard error
NUM_SIMULATIONS = 20_000


@dataclass(frozen=True)
class Outcome:
    """How a race ended.

    Attributes:
        estimates: name -> what was estimated, or why there is nothing.
        passes: name -> over the data.
        pilot: name -> wbic, wbic_mcse and passes after the pilot.
        rounds: after the pilot.
        settled: one checkpoint has a probability above 95 % to be the lowest, and all have mixed.
        alike: those within the errors of each other, where it is not settled.
        small: whether their errors are all below what matters.
    """

    estimates: dict[str, FreeEnergyEstimate | Exception]
    passes: dict[str, float]
    pilot: dict[str, dict[str, float]]
    rounds: int
    settled: bool
    alike: list[str]
    small: bool


Round = Callable[[Sequence[Sequence[Contender]]], bool]


def race(
    contenders: Mapping[str, Contender], seed: int, go_on: Round, interrupted: bool = False
) -> Outcome:
    """Go on after the pilot until the best is clear.

    Args:
        contenders: by name, all after their pilot.
        seed: of the simulation.
        go_on: doubles the draws of contenders, in a list each heat; says if it was interrupted.
        interrupted: a pilot was cut short by Ctrl-C, and nothing goes on. Default False.
    """
    estimates = _estimates(contenders)
    good = {name: made for name, made in estimates.items() if not isinstance(made, Exception)}
    pilot = {
        name: {
            "wbic": made.wbic, "wbic_mcse": made.wbic_mcse, "passes": contenders[name].passes
        }
        for name, made in good.items()
    }  # fmt: skip
    field, rounds = list(good), 0
    while True:
        chances = chances_of(good, seed)
        field = [name for name in field if chances.get(name, 1.0) >= LEFT]  # unmixed ones stay
        settled = max(chances.values(), default=0.0) > WON and all(
            name in chances for name in field
        )
        going = [
            name
            for name in field
            if not (name in chances and is_small(good[name]))
            and contenders[name].can_go_on(good[name])
        ]
        if settled or interrupted or not going:
            break
        rounds += 1
        heats: dict[Heat, list[Contender]] = {}
        for name in going:
            heats.setdefault(contenders[name].heat, []).append(contenders[name])
        interrupted = go_on(list(heats.values()))
        again = _estimates({name: contenders[name] for name in going})
        estimates |= again
        good = {name: made for name, made in estimates.items() if not isinstance(made, Exception)}
        field = [name for name in field if name in good]
    return Outcome(
        estimates,
        {name: contender.passes for name, contender in contenders.items()},
        pilot,
        rounds,
        settled,
        [] if settled else field,
        all(name in chances and is_small(good[name]) for name in field),
    )


def is_small(estimate: FreeEnergyEstimate) -> bool:
    """Say whether a standard error is below what matters."""
    above = abs(estimate.wbic - estimate.num_data * estimate.anchor_loss)
    return estimate.wbic_mcse <= max(MATTERS, ERROR_LIMIT * above)


def chances_of(estimates: Mapping[str, FreeEnergyEstimate], seed: int) -> dict[str, float]:
    """Simulate P(lowest WBIC) of those whose error bars are to be believed."""
    believed = {
        name: one
        for name, one in estimates.items()
        if isfinite(one.wbic_mcse) and errors_believed(one.r_hat, one.ess)
    }
    if not believed:
        return {}
    found = probability_of_lowest(
        [one.wbic for one in believed.values()], [one.wbic_mcse for one in believed.values()], seed
    )
    return dict(zip(believed, found.tolist(), strict=True))


def probability_of_lowest(
    means: Sequence[float], errors: Sequence[float], seed: int = 0
) -> NDArray[np.float64]:
    """Simulate P(each is the lowest) for independent N(mean, error²).

    Example:
        >>> probability_of_lowest([0.0, 0.0, 50.0], [1.0, 1.0, 1.0]).round(1).tolist()
        [0.5, 0.5, 0.0]
    """
    generator = np.random.default_rng(seed)
    noise = generator.standard_normal((NUM_SIMULATIONS, len(means)))
    draws = np.asarray(means) + np.asarray(errors) * noise
    return np.bincount(draws.argmin(1), minlength=len(means)) / NUM_SIMULATIONS


def _estimates(
    contenders: Mapping[str, Contender],
) -> dict[str, FreeEnergyEstimate | Exception]:
    found: dict[str, FreeEnergyEstimate | Exception] = {}
    for name, contender in contenders.items():
        try:
            found[name] = contender.estimate()
        except Exception as error:
            found[name] = error
    return found
