"""Was the warm-up long enough, has the loss levelled off, is the run complete."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from arviz_stats.base import array_stats

from ppl_fe.diagnostics.checks.mixing import ESS_LIMIT
from ppl_fe.diagnostics.diagnosis import Check
from ppl_fe.diagnostics.error_bars import AXES, distance, errors_allowed, mean_and_error
from ppl_fe.diagnostics.run_data import Run
from ppl_fe.inference.warmup.advice import RELAXATIONS_TO_WARM_UP, longer

# R-hat and ESS come from the same draws: where a half-chain is shorter than ten relaxation times
# they cannot see what has not moved yet.
RUN_RELAXATIONS = 20.0
UNFORESEEN = 3.0  # times slower than predicted
LEVEL_SHIFT = 0.02  # of λ̂, at half the step


def drift(run: Run) -> Check:
    """Check the first third of the loss (−log p without data) against the last, in errors.

    In a plateau the means differ by their Monte Carlo errors only, √2 times that of the last third:
    it has more of the plateau, if there is one. The worst of all chains and of their mean counts.
    A drift of many errors says that the error bar of E[L] is too small, however few nats it is.
    """
    third = run.num_draws // 3
    first, last = run.level[:, :third], run.level[:, -third:]
    shifts = np.abs(np.append(first.mean(1) - last.mean(1), first.mean() - last.mean()))
    sizes = [float(array_stats.ess(piece[None], **AXES, method="identity")) for piece in last]
    squares = last.var(axis=1, ddof=1) / sizes
    errors = np.sqrt(2 * np.append(squares, squares.mean() / len(squares)))
    found = [
        (distance(shift, error), errors_allowed(len(shifts), size))
        for shift, error, size in zip(shifts, errors, [*sizes, sum(sizes)], strict=True)
    ]
    value, allowed = max(found, key=lambda pair: _share(*pair))
    return Check.below(
        "drift",
        value,
        allowed,
        "the loss still drifts over the draws: no plateau yet; raise warmup_steps, or thinning",
    )


def _share(value: float, allowed: float) -> float:
    return value / allowed if np.isfinite(value) else float("inf")


def below_anchor(run: Run) -> Check | None:
    """Check that λ̂ = nβ(E[L] − L(w*)) is not negative: at a minimum it cannot be.

    With a fresh head w* is none, as its head is zero.
    """
    anchor, beta = run.attrs.get("anchor_loss"), run.attrs.get("inverse_temperature")
    if anchor is None or beta is None or "fresh_head" in run.attrs:
        return None
    mean, error, _ = mean_and_error(run.loss)
    scale = float(run.attrs["num_data"]) * float(beta)
    return Check.above(
        "below_anchor",
        scale * (mean - float(anchor)),
        -errors_allowed() * scale * error,
        "the chains found a lower loss than w*, which is no minimum: λ̂ is meaningless; train the "
        "checkpoint on, or raise localization",
    )


def half_step(run: Run) -> Check | None:
    """Check how far λ̂ moved when the step was halved (`check_half_step`)."""
    found = run.attrs.get("half_step_shift")
    if found is None:
        return None
    shift, error, llc = (float(number) for number in found)
    allowed = max(LEVEL_SHIFT * abs(llc), errors_allowed() * error)
    return Check.below(
        "half_step",
        abs(shift),
        allowed,
        "λ̂ depends on the step: halve step_size, or lower tolerance",
    )


def warmup_notes(warmup_steps: int, relaxation_steps: float) -> list[str]:
    """Say that a warm-up was short, for the notes of an estimate; [] if it was not.

    Args:
        warmup_steps: its length.
        relaxation_steps: that of the slowest direction's relaxation; NaN where it is not known.

    Example:
        >>> warmup_notes(1000, 20.0)
        []
    """
    if not relaxation_steps * RELAXATIONS_TO_WARM_UP > warmup_steps:
        return []
    return [
        f"short warm-up: {warmup_steps} steps, and the slowest direction takes "
        f"{relaxation_steps:.0f} to relax"
    ]


def warmup_length(run: Run) -> Check | None:
    """Check the warm-up in relaxation times of the slowest direction."""
    steps = relaxation(run).steps
    wanted = RELAXATIONS_TO_WARM_UP * float(np.ceil(steps))
    return Check.above(
        "warmup_length",
        float(run.attrs["warmup_steps"]) / steps,
        RELAXATIONS_TO_WARM_UP,
        f"the slowest direction takes {steps:.0f} steps to relax; "
        + longer("warmup_steps", wanted, run.attrs),
    )


def run_length(run: Run) -> Check | None:
    """Check the draws of a chain in relaxation times of the slowest direction."""
    steps, thinning = relaxation(run).steps, float(run.attrs["thinning"])
    # Draws of relaxation time τ count as one in 2τ.
    enough = max(RUN_RELAXATIONS, 2 * ESS_LIMIT / len(run.chains)) * steps / thinning
    least = float(np.ceil(RUN_RELAXATIONS * steps / thinning))
    return Check.above(
        "run_length",
        run.num_draws * thinning / steps,
        RUN_RELAXATIONS,
        f"the slowest direction takes {steps:.0f} steps to relax, and an ESS of {ESS_LIMIT:.0f} "
        f"about {np.ceil(enough):.0f} draws at this thinning; "
        + longer("num_samples", least, run.attrs),
    )


class Relaxation(NamedTuple):
    """steps of the slowest direction's relaxation; measured: by the draws, not by the warm-up."""

    steps: float
    measured: bool


def relaxation(run: Run) -> Relaxation:
    """Take the relaxation predicted in warm-up; or that of the slowest scalar's autocorrelation.

    The prediction is that of the widest coordinate which the warm-up has seen. Sites that hang
    together are slower, and what the warm-up did not see at all: where the draws count for too few
    and are correlated over three times as many steps, they are believed. Draws of autocorrelation
    ρ = exp(−thinning/τ) from one to the next have N/ESS = (1+ρ)/(1−ρ).
    """
    predicted = run.tuned("relaxation_steps")
    found = [float(array_stats.ess(x, **AXES, method="bulk")) for x in run.wanted.values()]
    least = min(found, default=float("nan"))
    ratio = max(run.loss.size / least, 1.1)
    measured = float(run.attrs["thinning"]) / float(np.log((ratio + 1) / (ratio - 1)))
    if predicted is None:
        return Relaxation(measured, True)
    steps = float(predicted.max())
    slower = least < ESS_LIMIT and measured > UNFORESEEN * steps
    return Relaxation(measured, True) if slower else Relaxation(steps, False)


def interrupted(run: Run) -> Check:
    """Check the share of the requested draws that an interrupted run has; 1 of any other."""
    wanted = int(run.attrs.get("num_samples", run.num_draws))
    share = run.num_draws / wanted if run.attrs.get("interrupted", False) else 1.0
    return Check.above(
        "interrupted",
        share,
        1 - 0.5 / wanted,
        f"{run.num_draws} of {wanted} draws were kept; go on with resume=True",
    )
