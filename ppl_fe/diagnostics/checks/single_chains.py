"""One chain unlike the others, or what one alone has known: failed, stuck, in another mode."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
from arviz_stats.base import array_stats

from ppl_fe.diagnostics.diagnosis import Check
from ppl_fe.diagnostics.error_bars import AXES, Array, distance, errors_allowed
from ppl_fe.diagnostics.run_data import Run
from ppl_fe.inference.run.conclusion import MOST_DIVERGING, share_lost, too_long
from ppl_fe.inference.warmup.other_modes import MATTERS, unvisited

# A chain whose interquartile range is a fifth of the others'. Of 100 effective draws it is known
# to 12 %, so that a healthy one is six errors away.
STUCK = 0.2
# Medians this many standard deviations apart: of 100 effective draws, eight errors.
APART = 1.0
IQR_OF_NORMAL = 1.349
MEDIAN_ERROR = 1.2533  # of n draws in units of σ/√n, √(π/2)


def failed_chains(run: Run) -> Check:
    """Check that no chain became non-finite and was left out."""
    failed = json.loads(run.attrs.get("failed_chains", "{}"))
    why = "; ".join(f"chain {chain}, {reason}" for chain, reason in failed.items())
    return Check.below(
        "failed_chains",
        len(failed),
        1,
        f"{why}: those left are no fair sample; give a smaller step_size, or {_elsewhere(run)}",
    )


def diverging(run: Run) -> Check | None:
    """Check the share of trajectories whose energy was lost, where there are any.

    A funnel's neck is too narrow for the step: what lies in it is proposed, and never accepted.
    """
    if "diverging" not in run.stats:
        return None
    share = share_lost(run.stats["diverging"], run.attrs)
    return Check.below("diverging", share, MOST_DIVERGING, too_long(share))


def unvisited_modes(run: Run) -> Check | None:
    """Check what modes found at the start, and hardly seen since, would add to a variance."""
    if "unvisited_modes" not in run.attrs:
        return None
    missing = json.loads(run.attrs["unvisited_modes"])
    advice = unvisited(missing) if missing else ""
    return Check.below("unvisited_modes", max(missing.values(), default=0.0), MATTERS, advice)


def stuck_chains(run: Run) -> Check | None:
    """Check the smallest spread of a chain relative to the others', the median over scalars.

    The spread is the interquartile range, which a heavy tail leaves as it is.
    """
    spread = np.stack([_spread(trace) for trace in run.sampled.values()])  # (K, C)
    usual = np.median(spread, axis=1)
    moving = usual > 0
    relative = np.zeros(spread.shape[1])
    if moving.any():
        relative = np.median(spread[moving] / usual[moving, None], axis=0)
    elif (spread.max(axis=1) > 0).any():  # most chains are stuck; any that moves is unlike them
        relative = np.where(spread.max(axis=0) > 0, 1.0, 0.0)
    worst = int(np.argmin(relative))
    return Check.above(
        "stuck_chains",
        relative[worst],
        STUCK,
        f"chain {run.chains[worst]} hardly moves; give a larger step_size for it, more "
        f"warmup_steps, or {_elsewhere(run)}",
    )


def chain_apart(run: Run) -> Check | None:
    """Check the largest distance of a chain's median from the middle chain, in sd within chains.

    Where chains are short, even healthy ones lie more than one apart by chance: then by as many
    errors of a median as the worst of all scalars and chains may stray. The effective number of
    draws is that of the autocorrelation within chains, which knows of one mode only.
    """
    coordinates = {} if run.is_estimate else run.sampled
    return _apart("chain_apart", {**coordinates, "loss": run.level}, run)


def coordinate_apart(run: Run) -> Check | None:
    """Check the same of the coordinates alone, for an estimate, whose loss `chain_apart` checks."""
    return _apart("coordinate_apart", run.sampled, run)


def _apart(name: str, traces: Mapping[str, Array], run: Run) -> Check | None:
    if len(run.chains) < 2 or not traces:
        return None
    errors = errors_allowed(len(traces) * len(run.chains)) * MEDIAN_ERROR
    worst, place, allowed = 0.0, "", APART
    for label, trace in traces.items():
        medians = np.median(trace, axis=1)
        away = np.abs(medians - np.median(medians))
        usual = float(np.median(_spread(trace))) / IQR_OF_NORMAL
        far = distance(float(away.max()), usual)
        by_chance = errors / np.sqrt(_draws_within(trace)) if far > APART else APART
        limit = max(APART, by_chance)
        if far / limit > worst / allowed or not place:
            worst, allowed = far, limit
            place = f"{label}: chain {run.chains[int(np.argmax(away))]}"
    return Check.below(
        name,
        worst,
        allowed,
        f"{place} sits in another place than the rest; raise warmup_steps, or bring every chain "
        f"into one mode by {_elsewhere(run)}",
    )


def _elsewhere(run: Run) -> str:
    """Name what decides where chains start: a local posterior's do about w*."""
    return "a larger localization" if "localization" in run.attrs else "other initial_params"


def _draws_within(trace: Array) -> float:
    """Count the effective draws of a chain (C, S) by the autocorrelation about each one's mean."""
    centred = trace - trace.mean(axis=1, keepdims=True)
    return float(array_stats.ess(centred, **AXES, method="identity")) / len(trace)


def shared_minibatches(run: Run) -> Check | None:
    """Check the correlation of the chains' losses within a draw, in standard errors.

    It is that of the traces' first differences, which no common drift correlates, and none for
    independent minibatches. The mean correlation of all
    pairs of chains has the variance 2/(C(C−1)S) Σ_k ρ_k² (Bartlett 1935, over all lags k), ρ the
    autocorrelation of the differences. Shared minibatches give it an expectation of the share that
    minibatches have in those differences.
    """
    count = len(run.chains)
    if count < 2:
        return None
    steps = np.diff(run.loss, axis=1)
    steps = steps - steps.mean(axis=1, keepdims=True)
    scale = steps.std(axis=1, keepdims=True)
    if not (scale > 0).all():
        return None
    steps = steps / scale
    length, pairs = steps.shape[1], count * (count - 1) / 2
    products = np.square(steps.sum(axis=0)) - np.square(steps).sum(axis=0)
    correlation = float(products.mean()) / (2 * pairs)
    lags = range(-min(length // 4, 100), min(length // 4, 100) + 1)
    squares = sum(_autocorrelation(steps, abs(lag)) ** 2 for lag in lags)
    error = float(np.sqrt(squares / (pairs * length)))
    return Check.below(
        "shared_minibatches",
        correlation / error,
        errors_allowed(),
        f"the losses of different chains are correlated ({correlation:.2f}) as if they drew the "
        "same minibatches, and R-hat cannot see such errors; let fe.sample draw them, one "
        "chain its own",
    )


def _autocorrelation(traces: Array, lag: int) -> float:
    """Compute the autocorrelation of standardised traces (C, S), the mean over chains."""
    return float((traces[:, lag:] * traces[:, : traces.shape[1] - lag]).mean())


def _spread(trace: Array) -> Array:
    """Compute interquartile ranges (C,) of traces (C, S)."""
    low, high = np.quantile(trace, [0.25, 0.75], axis=1)
    return np.asarray(high - low)
