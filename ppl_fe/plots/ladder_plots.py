"""The ladder of thermodynamic integration, and where the free energy comes from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.interpolate import CubicHermiteSpline

from ppl_fe.arguments import named_arguments
from ppl_fe.diagnostics.checks.mixing import believed_errors
from ppl_fe.plots.palette import COLOURS, NUM_ERRORS, row_of_axes

COLUMNS = ("inverse_temperature", "energy", "energy_mcse", "variance")
CURVE_POINTS = 400


@named_arguments
def plot_ladder(ladder: Any) -> NDArray[Any]:
    """Plot E[nL_n] at every rung, and the integrand whose area is the free energy.

    F(β) = ∫₀^β E_b[nL_n] db = ∫ b·E_b[nL_n] d ln b. Left: the energies E_b with two Monte Carlo
    standard errors either way, on the log axis on which the rungs lie apart; the prior's, at
    b = 0, is a dashed line. Right: b·E_b on the same axis, so that equal areas are equal parts
    of F (but for that below the first rung, b₁·E₀ or so). The curve has the rungs' values and their
    slopes dE/db = −Var_b[nL_n]; its integral over b is exactly the estimate, the trapezoid rule
    with its correction (Friel, Hurn & Wyse 2014). A rung whose chains have not mixed has no bar,
    and the legend counts such rungs.

    Args:
        ladder: the estimate of `integrate_free_energy`, or its `ladder`.

    Returns:
        (2,) axes, in a new figure.

    Raises:
        ValueError: not a ladder: columns missing, fewer than three rungs, or not rising from β = 0.

    Example:
        >>> beta = np.linspace(0, 1, 5) ** 5
        >>> ladder = pd.DataFrame({"inverse_temperature": beta, "energy": 9 / (1 + beta),
        ...                        "energy_mcse": 0.1, "variance": 9 / (1 + beta) ** 2})
        >>> left, right = plot_ladder(ladder)
        >>> left.get_xlabel()
        'inverse temperature β'
    """
    table = getattr(ladder, "ladder", ladder)
    if not isinstance(table, pd.DataFrame) or not set(COLUMNS) <= set(table):
        raise ValueError(f"ladder must be a table with the columns {', '.join(COLUMNS)}")
    beta, energy, error, variance = (table[name].to_numpy(float) for name in COLUMNS)
    if len(beta) < 3 or beta[0] != 0 or (np.diff(beta) <= 0).any():
        raise ValueError(f"inverse_temperature must rise from 0 over three rungs, got {beta}")
    error, unmixed = believed_errors(table, error), ""
    if wrong := np.isnan(error[1:]).sum():  # the prior's own draws are no chains
        unmixed = f", {wrong} rungs not mixed"
    curve = CubicHermiteSpline(beta, energy, -variance)
    free_energy = float(curve.integrate(0, beta[-1]))
    grid = np.geomspace(beta[1], beta[-1], CURVE_POINTS)
    every = row_of_axes(3.6)
    parts = [(every[0], np.ones_like(beta), 1 + 0 * grid), (every[1], beta, grid)]
    for axes, at_rungs, at_grid in parts:
        axes.plot(grid, at_grid * curve(grid), color=COLOURS[0], linewidth=1.2)
        axes.errorbar(
            beta[1:],
            (at_rungs * energy)[1:],
            yerr=(NUM_ERRORS * at_rungs * error)[1:],
            fmt="o",
            color=COLOURS[5],
            markersize=4,
            capsize=2,
            label=f"rungs ± {NUM_ERRORS:.0f} MCSE",
        )
        axes.set_xscale("log")
        axes.set_xlabel("inverse temperature β")
    left, right = every
    left.axhline(energy[0], color="black", linestyle="--", linewidth=1, label="prior, β = 0")
    if (energy > 0).all() and energy.max() > 10 * energy.min():
        left.set_yscale("log")
    left.set_ylabel("E[nL] (nats)")
    right.fill_between(
        grid,
        0,
        grid * curve(grid),
        color=COLOURS[4],
        alpha=0.4,
        linewidth=0,
        label=f"area F = {free_energy:.5g} nats{unmixed}",
    )
    right.set_ylabel("β E[nL] (nats per unit of ln β)")
    for axes in every:
        axes.legend(frameon=False)
    return every
