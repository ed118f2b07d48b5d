"""Have the chains forgotten where they started, and drawn enough: R-hat, ESS, MCSE.

Thresholds for scalars are those of Vehtari et al. (2021), rank-normalised split R-hat < 1.01 and
bulk and tail ESS > 400: an ESS of 100 a chain for four chains, from which on R-hat and the error
bars are themselves reliable. Chance alone moves R-hat. Of a well-mixed scalar whose H half-chains
have n draws and e effective draws each it is

    R-hat² = 1 − 1/n + F/e,        F ~ χ²_{H−1}/(H−1),

so that with four chains an ESS of 400 is above 1.01 in two cases of five, 1000 in one of a hundred,
and 2000 in one of a hundred thousand. A run that is to pass needs an ESS of 500 a chain; there
1.01 is a demand on the length of a run more than a test of its health. For the many coordinates of
a network, which cannot all be lucky, R-hat is held against its own law at an ESS of 100 a chain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from arviz_stats.base import array_stats
from numpy.typing import NDArray
from scipy.stats import binom, chi2

from ppl_fe.diagnostics.diagnosis import Check
from ppl_fe.diagnostics.error_bars import AXES, FALSE_ALARM, Array, mean_and_error
from ppl_fe.diagnostics.run_data import Run
from ppl_fe.inference.targets import ESS_LIMIT as ESS_LIMIT
from ppl_fe.inference.targets import R_HAT_LIMIT as R_HAT_LIMIT
from ppl_fe.inference.warmup.advice import batch_argument, has_dense_metric

# Of many quantities that are only ranked: a looser limit, which one in a hundred may exceed.
LOOSE_R_HAT_LIMIT, SHARE_LOOSE = 1.1, 0.01
# Chains that disagree by more, or fewer effective draws than ten of each of four chains, leave even
# the size of a standard error unknown (Gelman et al. 2013, Bayesian Data Analysis, 11.5).
LEAST_BELIEVED_ESS = 40.0
TAILS = (0.05, 0.95)
SHARE_ABOVE = 0.05
HALF_CHAIN_ESS = 50.0  # of coordinates: 100 a chain
# Two runs of this error each order a pair at that difference wrongly in Φ(−4/√2) = 0.2 % of cases.
ERRORS_IN_DIFFERENCE = 4.0


def errors_believed(r_hat: float, ess: float) -> bool:
    """Say whether the Monte Carlo standard error of a scalar's mean is worth anything.

    Args:
        r_hat: its rank-normalised split R-hat.
        ess: its bulk effective sample size.

    Example:
        >>> errors_believed(1.03, 150.0), errors_believed(1.4, 5.0), errors_believed(1.0, 12.0)
        (True, False, False)
    """
    return r_hat < LOOSE_R_HAT_LIMIT and ess > LEAST_BELIEVED_ESS


def trace_believed(trace: Array) -> bool:
    """Say the same of a scalar's draws (C, S); one chain is held against itself, half by half."""
    half = trace.shape[1] // 2
    chains = trace if len(trace) > 1 else np.stack([trace[0, :half], trace[0, -half:]])
    r_hat = float(array_stats.rhat(chains, **AXES, method="rank"))
    return errors_believed(r_hat, float(array_stats.ess(trace, **AXES, method="bulk")))


def believed_errors(table: pd.DataFrame, errors: Array) -> Array:
    """Put NaN for the standard errors of a table's rows that are worth nothing.

    Args:
        table: with the columns `r_hat` and `ess` of the same chains; without them all are believed.
        errors: (R,), one a row.

    Example:
        >>> table = pd.DataFrame({"r_hat": [1.0, 1.4], "ess": [900.0, 5.0]})
        >>> believed_errors(table, np.array([0.1, 0.1])).tolist()
        [0.1, nan]
    """
    if not {"r_hat", "ess"} <= set(table):
        return errors
    return np.where(list(map(errors_believed, table["r_hat"], table["ess"])), errors, np.nan)


def mixing_notes(
    r_hat: float, ess: float, most: float = R_HAT_LIMIT, least: float = ESS_LIMIT
) -> list[str]:
    """Say that a scalar's chains have not mixed, for the notes of an estimate; [] if they have.

    Args:
        r_hat: its rank-normalised split R-hat.
        ess: its bulk effective sample size.
        most: R-hat of chains that have mixed, 1.01 by default.
        least: ESS of theirs, 400 by default.

    Example:
        >>> mixing_notes(1.002, 900.0), mixing_notes(1.002, 100.0)[0][:39]
        ([], 'not mixed: ESS 100 (above 400 if mixed)')
    """
    wrong = []
    if not r_hat < most:
        wrong.append(f"R-hat {r_hat:.3f} (below {most} if mixed)")
    if not ess > least:
        wrong.append(f"ESS {ess:.0f} (above {least:.0f} if mixed)")
    if not wrong:
        return []
    worthless = "" if errors_believed(r_hat, ess) else ", so that the error bars are worth nothing"
    return [
        f"not mixed: {', '.join(wrong)}{worthless}; raise num_samples, thinning or "
        "warmup_steps, or localization"
    ]


def mixing_notes_of_many(
    r_hat: Array, parts: Mapping[str, NDArray[np.bool_]], what: str, remedy: str
) -> list[str]:
    """Say in which parts of many quantities too many have not mixed; [] if in none.

    Args:
        r_hat: (D,) split R-hat of each; NaN counts as mixed.
        parts: what to call a part of them -> (D,) which belong to it.
        what: what to call the quantities.
        remedy: what to do, in words.

    Example:
        >>> r_hat = np.array([1.0, 1.3, 1.0, 1.0])
        >>> parts = {"selected": np.array([True, True, False, False])}
        >>> mixing_notes_of_many(r_hat, parts, "the scales", "raise num_samples")
        ['R-hat of the scales exceeds 1.1 in 50 % of those selected, up to 1.30: raise num_samples']
    """
    bad = r_hat > LOOSE_R_HAT_LIMIT
    shares = {name: bad[part].mean() for name, part in parts.items() if part.any()}
    found = [
        f"{100 * share:.3g} % of those {name}"
        for name, share in shares.items()
        if share > SHARE_LOOSE
    ]
    if not found:
        return []
    worst = np.nanmax(r_hat[np.logical_or.reduce([*parts.values()])])
    return [
        f"R-hat of {what} exceeds {LOOSE_R_HAT_LIMIT} in {' and '.join(found)}, up to "
        f"{worst:.2f}: {remedy}"
    ]


def r_hat(run: Run) -> Check:
    """Check the worst rank-normalised split R-hat of what the run is for."""
    if len(run.chains) < 2:
        return Check.below(
            "r_hat",
            float("nan"),
            R_HAT_LIMIT,
            "one chain says nothing of others: give num_chains=4 or more",
        )
    value, worst = _worst(run, lambda x: array_stats.rhat(x, **AXES, method="rank"), 1)
    return Check.below(
        "r_hat",
        value,
        R_HAT_LIMIT,
        f"{worst}: the chains disagree; raise warmup_steps and thinning, or num_samples"
        + _where_scales_differ(run),
    )


def _where_scales_differ(run: Run) -> str:
    dense = ", and where directions differ much in scale try metric='dense'"
    return dense * has_dense_metric(run.attrs) + _or_localization(run)


def _or_localization(run: Run) -> str:
    """Advise on local posteriors alone: `fe.sample` has no such argument."""
    return ", or a larger localization" if "localization" in run.attrs else ""


def nested_r_hat(run: Run, superchains: int | None) -> Check | None:
    """Check the worst nested R-hat of the named scalars, in place of `r_hat`.

    It is √(1 + B/W), with B the variance between the means of K superchains and W that within
    (Margossian et al. 2024). Chains of a superchain share their start, so that B shows what is
    left of it; many short chains can then pass where split R-hat, which needs every chain long,
    cannot. By chance B/W is F/e for superchains of e effective draws; what is allowed is its law
    at 400 of them in all.
    """
    if superchains is None:
        return None
    count = len(run.chains)
    if superchains < 2 or count % superchains:
        raise ValueError(
            f"superchains={superchains} must be at least 2 and divide the {count} chains evenly"
        )
    members = np.arange(count) // (count // superchains)

    def nested(trace: Array) -> float:
        return float(array_stats.rhat_nested(trace, members, **AXES, method="rank"))

    value, worst = _worst(run, nested, 1)
    fraction = chi2.isf(FALSE_ALARM / max(1, len(run.wanted)), superchains - 1) / (superchains - 1)
    return Check.below(
        "nested_r_hat",
        value,
        max(R_HAT_LIMIT, float(np.sqrt(1 + fraction * superchains / ESS_LIMIT))),
        f"{worst}: superchains still disagree by where they started; raise warmup_steps, or "
        "num_samples",
    )


def ess_bulk(run: Run) -> Check:
    """Check the worst bulk ESS of what the run is for."""
    value, worst = _worst(run, lambda x: array_stats.ess(x, **AXES, method="bulk"), -1)
    return _enough("ess_bulk", value, worst)


def ess_tail(run: Run) -> Check:
    """Check the worst ESS of the 5 % and 95 % quantiles of what the run is for."""
    value, worst = _worst(run, lambda x: array_stats.ess(x, **AXES, method="tail", prob=TAILS), -1)
    return _enough("ess_tail", value, worst)


def _enough(name: str, value: float, worst: str) -> Check:
    factor = ESS_LIMIT / value if value > 0 else float("nan")
    return Check.above(
        name,
        value,
        ESS_LIMIT,
        f"{worst}: too few effective draws; raise num_samples or thinning about "
        f"{max(2.0, np.ceil(factor)):.0f}-fold, or num_chains",
    )


def coordinate_r_hat(run: Run) -> Check | None:
    """Check the worst split R-hat of all D coordinates against its law at 100 draws a chain."""
    if run.all_wanted or not _moments_known(run):
        return None
    return Check.below(
        "coordinate_r_hat",
        float(run.r_hat.max()),  # NaN if one is, as of a coordinate that never moved
        _r_hat_exceeded(run, FALSE_ALARM / len(run.r_hat)),
        f"coordinate {int(np.argmax(run.r_hat))} differs between chains; raise warmup_steps, "
        "num_samples or thinning" + _or_localization(run),
    )


def coordinates_unmixed(run: Run) -> Check | None:
    """Check the share of coordinates whose split R-hat is above what 5 % exceed by chance.

    That is 1.02 for four chains: the 95 % quantile at an ESS of 100 a chain. More than five per
    cent above it, and more than chance adds to so few coordinates, means that a part of them has
    fewer effective draws, however good the rest are.
    """
    if run.all_wanted or not _moments_known(run):
        return None
    return Check.below(
        "coordinates_unmixed",
        _share(run, run.r_hat),
        _share_allowed(len(run.r_hat), 1),
        "too many coordinates differ between chains; raise num_samples or thinning, or "
        "warmup_steps" + _or_localization(run),
    )


def layer_unmixed(run: Run) -> Check | None:
    """Check the share of `coordinates_unmixed` in the layer that is worst by what it is allowed."""
    if run.all_wanted or not _moments_known(run) or len(run.layers) < 2:
        return None
    found = {
        name: (_share(run, values), _share_allowed(len(values), len(run.layers)))
        for name, values in ((name, run.r_hat[part]) for name, part in run.layers.items())
    }
    worst = max(found, key=lambda name: found[name][0] / found[name][1])
    return Check.below(
        "layer_unmixed",
        *found[worst],
        f"{worst!r} mixes worst of all layers; raise num_samples or thinning"
        + _or_localization(run),
    )


def wbic_error(run: Run, difference: float | None) -> Check | None:
    """Check the MCSE of n·E[L], in nats, against a quarter of the difference that matters."""
    if difference is None:
        return None
    if not difference > 0:
        raise ValueError(f"difference must be positive, in nats of WBIC, got {difference}")
    _, error, _ = mean_and_error(run.loss)
    value, allowed = float(run.attrs["num_data"]) * error, difference / ERRORS_IN_DIFFERENCE
    factor, size = (value / allowed) ** 2, batch_argument(run.attrs)
    return Check.below(
        "wbic_error",
        value,
        allowed,
        f"differences of {difference:g} nats are lost in the error; raise num_samples or "
        f"num_chains about {np.ceil(factor):.0f}-fold{f', or {size}' * bool(size)}",
    )


def _worst(run: Run, statistic: Callable[[Array], float], sign: int) -> tuple[float, str]:
    """Find the largest (sign 1) or smallest (−1) value of the named scalars; NaN is worst."""
    found = {label: float(statistic(trace)) for label, trace in run.wanted.items()}
    if not found:
        return float("nan"), "nothing moves"
    for label, value in found.items():
        if np.isnan(value):
            return value, label
    label = max(found, key=lambda name: sign * found[name])
    return found[label], label


def _moments_known(run: Run) -> bool:
    return len(run.r_hat) > 0 and len(run.chains) > 1


def _r_hat_exceeded(run: Run, chance: float) -> float:
    """Compute the split R-hat that a well-mixed coordinate exceeds by chance, 1.01 at least."""
    freedom = 2 * len(run.chains) - 1
    return max(
        R_HAT_LIMIT, float(np.sqrt(1 + chi2.isf(chance, freedom) / freedom / HALF_CHAIN_ESS))
    )


def _share(run: Run, r_hat: Array) -> float:
    limit = _r_hat_exceeded(run, SHARE_ABOVE)
    return float(np.mean(~(r_hat <= limit)))  # a NaN counts as unmixed


def _share_allowed(size: int, num_tests: int) -> float:
    """Compute the share that chance exceeds in a false alarm, half a count above."""
    most = binom.isf(FALSE_ALARM / num_tests, size, SHARE_ABOVE)
    return float(most + 0.5) / size
