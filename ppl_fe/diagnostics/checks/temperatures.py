"""Is the law that the chains have settled on as warm as the one asked for.

Measured temperatures T̂ are means over the draws, each with its Monte Carlo standard error. They
fail only if they are off by more than 10 % *and* by more errors than chance allows: a variance
wrong by a tenth is an sd wrong by a twentieth, less than the Monte Carlo error at an ESS of 200,
while in a long run the bias of any finite step becomes significant.
"""

from __future__ import annotations

import numpy as np

from ppl_fe.diagnostics.diagnosis import Check
from ppl_fe.diagnostics.error_bars import Array, errors_allowed, mean_and_error
from ppl_fe.diagnostics.run_data import Run
from ppl_fe.inference.warmup.advice import quieter

MARGIN = 0.1
MOST_SKEWED = 2.0
WARMER = "the sampler injects too little noise, or warm-up left it off its centre: check the "
WARMER += "temperature, and raise warmup_steps"


def temperature(run: Run) -> Check | None:
    """Check the configurational temperature of all coordinates, E⟨w − c, ∇U⟩/D, as a share of T."""
    return _of(run, "configurational_temperature", "temperature", "overall")


def stiff_temperature(run: Run) -> Check | None:
    """Check the temperature along the stiffest direction, the first that a step heats."""
    return _of(run, "stiff_temperature", "stiff_temperature", "the stiffest direction")


def kinetic_temperature(run: Run) -> Check | None:
    """Check the temperature of the momenta, for samplers that have them."""
    return _of(run, "kinetic_temperature", "kinetic_temperature", "the momenta")


def block_temperature(run: Run) -> Check | None:
    """Check the configurational temperature of the worst layer or site."""
    values = run.stats.get("block_temperature")
    if values is None:
        return None
    found = {
        name: _relative(run, values[..., place], len(run.blocks))
        for place, name in enumerate(run.blocks)
    }
    worst = max(found, key=lambda name: _excess(*found[name]))
    return _check(run, "block_temperature", found[worst], f"{worst!r}")


def predicted_excess(run: Run) -> Check | None:
    """Check the T_eff/T − 1 predicted along the stiffest direction against the tolerance.

    Not known for a step by hand with nothing left to tune.
    """
    excess = run.tuned("excess_temperature")
    if excess is None:
        return None
    # In float32 a step chosen for exactly the tolerance comes out a rounding above it.
    return Check.below(
        "predicted_excess",
        _largest(excess),
        1.001 * float(run.attrs["tolerance"]) + 1e-6,
        "the step is too long for the tolerance; give step_size='auto' with more warmup_steps, or "
        "a smaller step_size",
    )


def gradient_noise(run: Run) -> Check | None:
    """Check the variance of the gradient's share of a step over the injected noise's, εs²/(4T).

    For SGLD the energy balance E|w'|² = E|w|² holds whatever the density, and with
    w' = w + (ε/2)ĝ + √(εT)ξ it reads

        E⟨w − c, ∇U⟩/D = T + (ε/4) E|ĝ|²/D,

    so ε E|ĝ|²/(4TD) is the mean excess temperature, discretisation included, and far more precise
    than the left side. For other samplers s² is that along the stiffest direction, if
    warm-up measured it, times what their friction leaves of it (`predicted_excess` has that too).
    """
    relative = _energy_balance(run) if _is_plain_sgld(run) else _from_warm_up(run)
    if relative is None:
        return None
    return Check.below(
        "gradient_noise",
        relative,
        MARGIN,
        f"{'minibatches and ' * bool(quieter(run.attrs))}step heat the chains as the injected "
        f"noise does; {_cooler(run)}",
    )


def _is_plain_sgld(run: Run) -> bool:
    return run.attrs.get("sampler") == "SGLD" and run.attrs.get("metric") == "identity"


def _energy_balance(run: Run) -> float | None:
    if not len(run.r_hat):
        return None
    squares = run.stats["step_size"] * np.square(run.stats["gradient_norm"])
    return float(squares.mean()) / (4 * run.temperature * len(run.r_hat))


def _from_warm_up(run: Run) -> float | None:
    noise, step_size = run.tuned("gradient_noise"), run.tuned("step_size")
    if noise is None or step_size is None:
        return None
    return _largest(step_size * noise) / (4 * run.temperature)


def _of(run: Run, statistic: str, name: str, what: str) -> Check | None:
    values = run.stats.get(statistic)
    return None if values is None else _check(run, name, _relative(run, values, 1), what)


def _relative(run: Run, values: Array, num_tests: int) -> tuple[float, float]:
    """Compute T̂/T, and by how much it may differ from one.

    The virial of few directions is skewed like χ²: a low mean comes with too small an error. Its
    spread goes with its mean, so that of a chain found cold the error at T is larger by T/T̂.
    """
    mean, error, ess = mean_and_error(values)
    relative = mean / run.temperature
    skewness = 1 / np.clip(relative, 1 / MOST_SKEWED, 1)
    allowed = errors_allowed(num_tests, ess) * error * skewness / run.temperature
    return relative, max(MARGIN, float(allowed))


def _excess(relative: float, margin: float) -> float:
    """Compute how far off it is, as a share of what is allowed; NaN is worst of all."""
    found = abs(relative - 1) / margin
    return found if np.isfinite(found) else float("inf")


def _check(run: Run, name: str, found: tuple[float, float], what: str) -> Check:
    relative, margin = found
    how = f"too hot; {_cooler(run)}" if relative > 1 else f"too cold; {WARMER}"
    if np.isnan(relative):
        how = "a gradient was not finite; give a smaller step_size, and check the data"
    return Check.within(name, relative, 1.0, margin, f"{what} {relative:.2f} T: {how}")


def _cooler(run: Run) -> str:
    """Write what makes a run cooler, of the settings that it has."""
    if "tolerance" not in run.attrs:  # of a sampler that no step heats
        return "the draws have not settled: raise warmup_steps and num_samples"
    by_hand = run.attrs.get("step_size") != "auto"
    ways = ["lower step_size" if by_hand else "lower tolerance, or step_size"]
    return "; or ".join(ways + [quieter(run.attrs)] * bool(quieter(run.attrs)))


def _largest(values: Array) -> float:
    return float(values.max())  # NaN if any is
