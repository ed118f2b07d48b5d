"""The line before the long part of a run: what it will take, and what to change if that is vain."""

from __future__ import annotations

from math import ceil, floor, log10
from typing import NamedTuple

from ppl_fe.inference.run.memory import in_gigabytes
from ppl_fe.inference.run_plan import RunLength, RunPlan, Target
from ppl_fe.inference.step.chains import Chains
from ppl_fe.inference.step.trajectories import Trajectories
from ppl_fe.inference.warmup.advice import MOST_STEPS, RELAXATIONS_TO_WARM_UP
from ppl_fe.inference.warmup.step_size import Adaptation
from ppl_fe.inference.warmup.windows import Windows

LONG = 20.0  # seconds; a shorter run needs no line before it
# Relaxations of the slowest direction for an effective draw of its coordinate, and of the loss:
# that goes with the square of the distance, and hardly sees directions in which data say nothing.
RELAXATIONS_A_DRAW, OF_THE_LOSS = 2.0, 0.5
LOCALIZATIONS = tuple(one * 10.0**power for power in range(-6, 9) for one in (1, 2, 5))


class Prospect(NamedTuple):
    """What is known of a run before its long part.

    Attributes:
        remaining: what is still to come, a chain, as the progress bar counts it.
        unit: of that.
        shortfall: that the targets are out of reach, and why; "" where they are not.
        ways: what would bring them within reach, or where they are, make the run shorter.
    """

    remaining: float
    unit: str = "steps"
    shortfall: str = ""
    ways: tuple[str, ...] = ()

    def line(self, sampler: str, seconds: float, memory: float = 0.0) -> str:
        """Write the line, or "" where the run is short.

        Args:
            sampler: its name.
            seconds: for one of what is counted.
            memory: bytes that the run will have taken; 0 (the default) where nobody knows.

        Example:
            >>> Prospect(12_000).line("BAOAB", 0.0033, memory=5.1e9)
            'BAOAB: about 40 s, 12,000 steps a chain, 5.1 GB of memory'
        """
        if self.remaining * seconds < LONG:
            return ""
        text = f"{sampler}: about {in_words(self.remaining * seconds)}"
        ways = ", or ".join(self.ways)
        if not self.shortfall:
            length = f"{rounded(self.remaining):,} {self.unit} a chain"
            text = f"{text}, {length}{in_gigabytes(memory)}"
            return f"{text}; to shorten it, {ways}" if ways else text
        return f"{text}; {self.shortfall}" + (f": {ways}" if ways else "")


def in_words(seconds: float) -> str:
    """Write a time that nobody knows to the second.

    Example:
        >>> [in_words(seconds) for seconds in (42, 250, 7500, 300_000)]
        ['40 s', '4 min', '2 h', '3 days']
    """
    for unit, size, most in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 130_000)):
        if seconds < most:
            count = seconds / size
            return f"{10 * round(count / 10) if unit == 's' else round(count)} {unit}"
    return f"{round(seconds / 86_400):,} days"


def rounded(count: float) -> int:
    """Round up to two digits.

    Example:
        >>> rounded(401_234.0), rounded(3.2)
        (410000, 4)
    """
    unit = int(10 ** max(0, floor(log10(max(count, 1.0))) - 1))
    return ceil(count / unit) * unit


def lengths(relaxation: float, plan: RunPlan) -> RunLength:
    """Give the lengths of a run until its targets whose slowest direction relaxes in so many steps.

    The warm-up is five of these times, and half of one, or for the loss, which forgets sooner, an
    eighth lies between two draws. The draws fill half of the steps allowed at most.

    Args:
        relaxation: in steps.
        plan: of the run.
    """
    assert plan.until is not None
    num_samples = plan.length.num_samples
    share = 2 if plan.until.loss_offsets is None else 8
    longest = max(1, plan.until.max_steps // 2 // num_samples)
    thinning = max(1, min(ceil(relaxation / share), longest))
    return RunLength(num_samples, ceil(RELAXATIONS_TO_WARM_UP * relaxation), thinning)


def look_ahead(
    chains: Chains | Trajectories,
    adaptation: Adaptation | Windows,
    target: Target,
    plan: RunPlan,
    *,
    taken: int,
    warmed_up: bool,
) -> Prospect | None:
    """Look ahead at a run, as far as is known what it will take.

    Of a localised posterior the slowest direction is known beforehand, of others after a warm-up.
    How many steps trajectories have changes in it; until then those that they have are counted.

    Args:
        chains: of the run.
        adaptation: what warms them up.
        target: what is sampled.
        plan: how.
        taken: steps so far, as the progress bar counts them.
        warmed_up: after the first warm-up.
    """
    if plan.until is None:
        return Prospect(plan.length.num_steps - taken)
    if isinstance(chains, Trajectories):
        assert isinstance(adaptation, Windows)
        still = 0 if warmed_up else adaptation.least_remaining
        return of_trajectories(chains, target, plan, still)
    assert isinstance(adaptation, Adaptation)
    known = warmed_up or target.least_curvature is not None
    return of_relaxation(adaptation, target, plan) if known else None


def of_trajectories(
    chains: Trajectories, target: Target, plan: RunPlan, still: int = 0
) -> Prospect:
    """Look ahead at a run of trajectories.

    A trajectory is one effective draw at best.

    Args:
        chains: in warm-up or after it.
        target: what is sampled.
        plan: of the run, which goes on until its targets.
        still: trajectories that the warm-up will take, none by default.
    """
    assert plan.until is not None
    most, so_far = plan.until.max_steps, chains.num_gradients
    effective = plan.until.ess * target.num_groups / plan.num_chains
    each = chains.mean_num_steps
    needed = so_far + (still + effective) * each
    local = target.least_curvature is not None  # whose γ may be raised, and not its max_steps
    ways = ("raise localization",) if local else _more_steps(needed)
    if needed <= most:
        count = still + plan.length.num_samples
        return Prospect(count, "trajectories", ways=ways if local else ())
    left = max(0, most - so_far) / each
    name = "" if local else "max_steps="
    shortfall = (
        f"trajectories take {round(each)} steps here, so that the targets would need "
        f"{rounded(needed):,}, and {name}{most:,} are allowed"
    )
    return Prospect(left, "trajectories", shortfall, ways)


def of_relaxation(adaptation: Adaptation, target: Target, plan: RunPlan) -> Prospect | None:
    """Look ahead at a run until its targets by the curvatures and the noise measured so far.

    Args:
        adaptation: which has measured.
        target: what is sampled.
        plan: of the run, which goes on until its targets.

    Returns:
        None where no relaxation is known, as of a step that is given by hand.
    """
    until, relaxation = plan.until, adaptation.relaxation()
    if until is None or relaxation is None:
        return None
    each = RELAXATIONS_A_DRAW if until.loss_offsets is None else OF_THE_LOSS
    effective = until.ess * target.num_groups / plan.num_chains
    relaxations = RELAXATIONS_TO_WARM_UP + each * effective

    def within(stiffer: float = 1.0, *, noisy: bool = True) -> bool:
        slowest = adaptation.relaxation(stiffer, noisy=noisy)
        return slowest is not None and relaxations * slowest <= until.max_steps

    wanted = lengths(relaxation, plan)
    warmup = min(max(wanted.warmup_steps, plan.length.warmup_steps), until.max_steps // 2)
    count = warmup + wanted.num_samples * wanted.thinning - adaptation.num_steps
    if within():
        return Prospect(count)
    needed, localization = relaxations * relaxation, target.least_curvature
    needs = f"would need {rounded(needed):,} steps here, and"
    quiet = not adaptation.exact_gradient and target.source is None and within(noisy=False)
    if localization is None:
        shortfall = f"the targets {needs} max_steps={until.max_steps:,} are allowed"
        ways = _more_steps(needed) + ("take larger minibatches",) * quiet
        return Prospect(count, "steps", shortfall, ways)
    stronger = (one for one in LOCALIZATIONS if one > localization)
    enough = next((one for one in stronger if within(one / localization)), None)
    ways = () if enough is None else (f"raise localization to {enough:g}",)
    ways += ("take batch_size=None",) * quiet
    shortfall = f"γ = {localization:g} {needs} {until.max_steps:,} are allowed"
    return Prospect(count, "steps", shortfall, ways)


def _more_steps(needed: float) -> tuple[str, ...]:
    """Advise to allow as many, where anyone would take them."""
    return (f"raise max_steps to {rounded(needed):,}",) if needed <= MOST_STEPS else ()
