"""The effective temperature against the step size: what a larger step costs in bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_fe.arguments import named_arguments
from ppl_fe.diagnostics.error_bars import mean_and_error
from ppl_fe.diagnostics.run_data import open_draws, read_run
from ppl_fe.inference import samplers
from ppl_fe.inference.dynamics import Measured
from ppl_fe.inference.kernels import Kernel
from ppl_fe.plots.palette import BAND, COLOURS, NUM_ERRORS, legend_beside, one_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]

CURVE_POINTS = 200
BEYOND = 1.5  # the curve goes on for this factor on either side of the steps that were tried


@named_arguments
def plot_temperature_against_step(runs: Sequence[Any], *, axes: Axes | None = None) -> Axes:
    """Plot T_eff along the stiffest direction, measured and predicted, against the step size ε.

    A point a run, the mean over chains and draws with two Monte Carlo standard errors either way.
    The curve is the sampler's own prediction (`Dynamics.excess_temperature`) from the curvature
    and gradient noise that the run with the automatic step met in its warm-up; that run's step is
    marked. The step was chosen by upper quantiles of both, so the curve is a cautious one, and
    points below it are in order; points above it say that −log p is not quadratic along that
    direction, or that the chains have not converged.

    Args:
        runs: draws of one model and sampler at different steps, among them one with
            step_size="auto"; draws, paths or estimates.
        axes: where to draw, by default in a new figure.

    Returns:
        The axes.

    Raises:
        TypeError: not a list of runs.
        ValueError: no run, or more than one, with step_size="auto"; runs of different samplers or
            temperatures; a sampler that is none of fe's.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> import ppl_fe as fe
        >>> def model():
        ...     pyro.sample("w", dist.Normal(0.0, torch.tensor([0.1, 0.2])).to_event(1))
        >>> steps = ["auto", 0.005, 0.01, 0.02]
        >>> runs = [
        ...     fe.sample(fe.SGLD(model, step_size=step), num_samples=100, progress_bar=False)
        ...     for step in steps]
        >>> axes = plot_temperature_against_step(runs)
        >>> axes.get_xscale()
        'log'
    """
    if isinstance(runs, str) or not isinstance(runs, Sequence):
        raise TypeError(f"runs must be a list of draws, got {type(runs).__name__}")
    found = [read_run(open_draws(draws)) for draws in runs]
    automatic = [run for run in found if run.attrs.get("step_size") == "auto"]
    if len(automatic) != 1:
        raise ValueError(
            f"{len(automatic)} of the {len(found)} runs have step_size='auto', and one must: its "
            "warm-up measures what the prediction needs, and its step is the one marked"
        )
    chosen = automatic[0]
    for name in ("sampler", "temperature"):
        others = {run.attrs[name] for run in found}
        if len(others) > 1:
            raise ValueError(f"runs differ in their {name}, {sorted(others)}; draw one at a time")
    points = sorted(
        (float(run.stats["step_size"].mean()), *mean_and_error(run.stats["stiff_temperature"])[:2])
        for run in found
    )
    step_sizes, measured, errors = np.transpose(points)
    own = float(chosen.stats["step_size"].mean())
    grid = np.geomspace(step_sizes[0] / BEYOND, step_sizes[-1] * BEYOND, CURVE_POINTS)
    curve = predicted_temperature(chosen.attrs, grid)
    axes = one_axes(axes)
    target, tolerance = chosen.temperature, float(chosen.attrs["tolerance"])
    axes.axhspan(target, target * (1 + tolerance), color=BAND, linewidth=0, label="tolerance")
    axes.axhline(target, color="black", linewidth=1, label="target T")
    stable = np.isfinite(curve)
    axes.plot(
        grid[stable], curve[stable], color=COLOURS[0], linestyle="--", label="predicted at most"
    )
    axes.errorbar(
        step_sizes,
        measured,
        yerr=NUM_ERRORS * errors,
        fmt="o",
        color=COLOURS[5],
        markersize=5,
        capsize=2,
        label=f"measured ± {NUM_ERRORS:.0f} MCSE",
    )
    axes.axvline(own, color=COLOURS[2], linestyle=":", linewidth=1.6, label=f"chosen ε = {own:.2g}")
    bars = NUM_ERRORS * errors
    known = bars < target if (bars < target).any() else np.full(len(bars), True)
    # Runs so short that their bars say nothing may leave the picture, as may the curve.
    lowest = min(target, (measured - bars)[known].min())
    highest = max(target * (1 + tolerance), (measured + bars)[known].max())
    room = 0.1 * (highest - lowest)
    axes.set_ylim(lowest - room, highest + room)
    axes.set_xscale("log")
    axes.set_xlabel("step size ε")
    axes.set_ylabel("effective temperature, stiffest direction")
    legend_beside(axes)
    return axes


def predicted_temperature(attributes: Mapping[Any, Any], step_sizes: Array) -> Array:
    """Predict T_eff along the stiffest direction at each step by the sampler's own formula.

    The formula is that of `Dynamics.excess_temperature`, of the curvature and gradient noise that
    the warm-up of a run with automatic settings met. A friction that was automatic is chosen for
    every step as a run at that step would choose it.

    Args:
        attributes: of the run's draws.
        step_sizes: ε, (G,).

    Returns:
        (G,), infinite where the step is unstable.

    Raises:
        ValueError: a sampler that is none of fe's, or a run that measured no curvature.

    Example:
        >>> facts = {"sampler": "SGLD", "temperature": 1.0, "tolerance": 0.05,
        ...          "tuned_stiffest_curvature": [4.0], "tuned_gradient_noise": [0.0]}
        >>> predicted_temperature(facts, np.array([0.5, 1.0])).tolist()    # 1/(1 − ε) below 1
        [2.0, inf]
    """
    name = attributes.get("sampler")
    kernel = getattr(samplers, str(name), None)
    if not (isinstance(kernel, type) and issubclass(kernel, Kernel)):
        raise ValueError(f"the sampler {name} is none of fe's: its temperature is not predicted")
    if "tuned_stiffest_curvature" not in attributes:
        raise ValueError("this run measured no curvature; it needs step_size='auto'")

    def column(value: float) -> Tensor:
        return torch.full((len(step_sizes), 1), value, dtype=torch.float64)

    def met(what: str) -> Tensor:
        return column(float(np.nanmax(attributes[f"tuned_{what}"])))

    dynamics, temperature = kernel.dynamics, column(float(attributes["temperature"]))
    curvature, noise = met("stiffest_curvature"), met("gradient_noise")
    step_size = torch.as_tensor(step_sizes, dtype=torch.float64)[:, None]
    settings = {"step_size": step_size, "temperature": temperature}
    given = {own: attributes[own] for own in dynamics.hyperparameters}
    if "auto" in given.values():
        found = Measured(curvature, met("slowest_curvature"), noise, temperature)
        settings |= dynamics.tune(found, float(attributes["tolerance"]), step_size)
    settings |= {own: column(float(value)) for own, value in given.items() if value != "auto"}
    excess = dynamics.excess_temperature(curvature, noise, settings)
    return np.asarray((temperature * (1 + excess))[:, 0])
