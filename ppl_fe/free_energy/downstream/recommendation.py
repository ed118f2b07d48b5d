"""Which checkpoint to take, how sure that is, and whether the criteria agree."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import spearmanr

from ppl_fe.free_energy.downstream.criteria import CONSENSUS, HIGHER_IS_BETTER, SAMPLED

NUM_SIMULATIONS = 20_000
MOST_R_HAT = 1.05  # of the chains of a checkpoint that is recommended
UNITS = {
    **dict.fromkeys(("free_energy", "expected_loss", "linearized_free_energy"), "nats"),
    CONSENSUS: "of the list",
}


class Expected(NamedTuple):
    """regret: of a choice, in the criterion's own units. best: the chance that it is the best."""

    regret: float
    best: float


def expected_regret(
    values: NDArray[np.float64], errors: NDArray[np.float64], chosen: int, seed: int = 0
) -> Expected:
    """Estimate how much worse than the best the chosen one is, the lowest value being the best.

    The true values are taken as N(μ, τ²) about their common mean and seen with their errors, so
    that each is drawn from N(m_k, s_k²), shrunk towards the mean as far as its error is large
    beside τ: the lowest of many noisy values is less low than it looks. The regret is the mean of
    the chosen value less the lowest, over 20,000 draws.

    Args:
        values: (M,) of the candidates.
        errors: (M,) their standard errors; NaN counts as the largest of the others.
        chosen: place of the choice.
        seed: of the draws.

    Example:
        >>> values, errors = np.array([0.0, 1.0]), np.array([1e-9, 1e-9])
        >>> [round(expected_regret(values, errors, k).regret, 3) for k in (0, 1)]
        [0.0, 1.0]
    """
    known = errors[np.isfinite(errors)]
    noise = np.where(np.isfinite(errors), errors, known.max() if len(known) else 0.0) ** 2
    noise = np.maximum(noise, 1e-300)
    spread = max(float(values.var(ddof=1)) - float(noise.mean()), 0.0) if len(values) > 1 else 0.0
    share = spread / (spread + noise)
    mean = values.mean() + share * (values - values.mean())
    unit = np.random.default_rng(seed).standard_normal((NUM_SIMULATIONS, len(values)))
    draws = mean + np.sqrt(share * noise) * unit
    regret = draws[:, chosen] - draws.min(1)
    return Expected(float(regret.mean()), float((draws.argmin(1) == chosen).mean()))


def oriented(table: pd.DataFrame, criterion: str) -> pd.Series:
    """Give a criterion's column with the sign at which lower is better."""
    column = table[criterion].astype(float)
    return -column if criterion in HIGHER_IS_BETTER else column


def trusted(table: pd.DataFrame, criterion: str) -> pd.Series:
    """Mark the rows that a recommendation may be made of: a number, and chains that mixed."""
    good = table[criterion].notna()
    return good & (table["r_hat"] < MOST_R_HAT) if criterion in SAMPLED else good


def agreement(table: pd.DataFrame, criteria: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Compute Spearman's rank correlation of every two criteria, over checkpoints that have both.

    Signs are those at which lower is better, so that 1 is agreement.

    Returns:
        Criterion -> criterion -> correlation; NaN with fewer than three checkpoints, or where one
        of the two tells none apart.
    """
    columns = {name: oriented(table, name) for name in criteria}
    found: dict[str, dict[str, float]] = {name: {} for name in criteria}
    for first, x in columns.items():
        for second, y in columns.items():
            both = x.notna() & y.notna()
            tells = both.sum() > 2 and x[both].nunique() > 1 and y[both].nunique() > 1
            value = spearmanr(x[both], y[both]).statistic if tells else float("nan")
            found[first][second] = round(float(value), 4)
    return found


def recommend(table: pd.DataFrame, by: str, criteria: tuple[str, ...], num_labels: int) -> str:
    """Say in a sentence or two which checkpoint to take, and with what expected regret.

    Args:
        table: of `choose_checkpoint`, best first.
        by: the criterion of the order.
        criteria: all that were computed.
        num_labels: n.
    """
    good = trusted(table, by)
    if not good.any():
        sampled = SAMPLED[0] if by == CONSENSUS else by
        if sampled in table and table[sampled].notna().any():
            return (
                f"No checkpoint can be recommended by {by}: the chains of none have mixed (R-hat "
                f"below {MOST_R_HAT}); raise num_samples or localization."
            )
        return (
            f"No checkpoint can be recommended: none of {len(table)} came to a number by {by}"
            f"{_why_none(table)}."
        )
    rows = table[good]
    values = oriented(rows, by).to_numpy()
    chosen = int(values.argmin())
    errors = rows[f"{by}_error"].to_numpy(float)
    found = expected_regret(values, errors, chosen)
    unit = UNITS.get(by, "")
    left = len(table) - len(rows)
    source = "Monte Carlo error" if by in SAMPLED else "its error over the labels"
    if by == CONSENSUS:
        source = "the errors of its votes"
    return (
        f"Take {str(rows.index[chosen])!r}: of {len(rows)} checkpoints the best by {by}, "
        f"{rows[by].iloc[chosen]:.4g} ± {errors[chosen]:.2g} {unit} on {num_labels} labels"
        f"{f', {left} others left out' if left else ''}. ".replace("  ", " ")
        + f"Its expected regret is {found.regret:.2g} {unit}".rstrip()
        + f" and its chance to be the best {found.best:.2f}, from values shrunk to their mean by "
        f"{source}: how well {by} foretells fine-tuning is not in them. "
        + _others(rows, by, criteria)
    )


def _why_none(table: pd.DataFrame) -> str:
    """Say of one checkpoint why it has no number: of one that was read, where there is one."""
    was_read = table["error"] == ""
    said = [*table["note"][was_read].items(), *table["error"][~was_read].items()]
    return next((f" ({name}: {text})" for name, text in said if text), "")


def _others(rows: pd.DataFrame, by: str, criteria: tuple[str, ...]) -> str:
    """Name what each of the other criteria would take."""
    best = {}
    for name in criteria:
        values = oriented(rows, name)
        if name != by and values.notna().any():
            best[name] = str(values.idxmin())
    choices: dict[str, list[str]] = {}
    for name, choice in best.items():
        choices.setdefault(choice, []).append(name)
    if not choices:
        return ""
    said = [f"{', '.join(names)} would take {choice!r}" for choice, names in choices.items()]
    return "; ".join(said)[0].upper() + "; ".join(said)[1:] + "."
