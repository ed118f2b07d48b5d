"""The local free energy −log Z itself, by thermodynamic integration over a ladder of β."""

from __future__ import annotations

import os
from dataclasses import dataclass
from html import escape
from math import sqrt
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
import xarray as xr
from numpy.typing import NDArray

from ppl_fe.diverged import DivergedError
from ppl_fe.free_energy.estimators import loss_summary
from ppl_fe.free_energy.local_chains import (
    DEFAULT_LOCALIZATION,
    ChainOptions,
    held_out_loss,
    sample_local_posteriors,
)
from ppl_fe.inference.record.netcdf import write_netcdf
from ppl_fe.models.localized import require_positive
from ppl_fe.networks.flat import FlatNetwork

NUM_PRIOR_DRAWS = 1000
LADDER_POWER = 5  # rungs at β(k/K)^5, dense near the prior (Friel & Pettitt 2008)


@dataclass(frozen=True, repr=False)
class ThermodynamicEstimate:
    """F = −log Z at β, in nats; prints as a line and its ladder.

    Attributes:
        free_energy: F(β) = −log ∫ exp(−nβL_n(w)) N(w; w*, I/γ) dw.
        mcse: Monte-Carlo standard error, over the rungs' own.
        ladder_error: how far the result is from that of every second rung: an upper bound, about
            sixteen times too large, of the ladder's own discretisation error.
        ladder: one row a rung: inverse_temperature, energy E[nL_n], energy_mcse, variance, r_hat,
            ess.
        draws: the chains, rung after rung.
    """

    free_energy: float
    mcse: float
    ladder_error: float
    ladder: pd.DataFrame
    draws: xr.DataTree

    def to_dataframe(self) -> pd.DataFrame:
        """The ladder, one row a rung; `plot_ladder` draws it."""
        return self.ladder.copy()

    def to_netcdf(self, path: str | os.PathLike[str]) -> None:
        """Write the draws as a netCDF file, the ladder as its group `ladder`.

        Opened by `xr.open_datatree(path)`, or by ArviZ; the numbers above are attributes of its
        root. An older file is replaced.

        Raises:
            ImportError: without h5netcdf: pip install 'ppl-fe[netcdf]'.
        """
        numbers = {name: getattr(self, name) for name in ("free_energy", "mcse", "ladder_error")}
        ladder = xr.Dataset.from_dataframe(self.ladder.rename_axis("rung"))
        write_netcdf(self.draws, path, numbers, {"ladder": ladder})

    def __str__(self) -> str:
        return (
            f"−log Z = {self.free_energy:.3f} ± {self.mcse:.3f} nats (Monte Carlo), "
            f"ladder of {len(self.ladder)} rungs: error below {self.ladder_error:.3f}, "
            f"worst R-hat {self.ladder['r_hat'].max():.3f}"
        )

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<p>{escape(str(self))}</p>{self.ladder.to_html(float_format='{:.4g}'.format)}"


def integrate_free_energy(
    network: FlatNetwork,
    data: Any,
    *,
    num_rungs: int = 24,
    **options: Unpack[ChainOptions],
) -> ThermodynamicEstimate:
    """The local free energy of a network's anchor by thermodynamic integration.

        F(β) = −log ∫ exp(−nβL_n(w)) N(w; w*, I/γ) dw = ∫₀^β E_b[nL_n] db,

    with E_b under exp(−nbL_n) N(w; w*, I/γ), so that F(0) = 0: the localiser is normalised. Rungs
    b_k = β(k/K)^5 run side by side as further chains. Between rungs the trapezoid is corrected by
    dE/db = −Var_b[nL_n]: ∫ ≈ Δ(E_k + E_{k+1})/2 + Δ²(V_{k+1} − V_k)/12 (Friel, Hurn & Wyse 2014).

    Args:
        network, data: as in `estimate_free_energy`. All data are used in every step, since a
            minibatch would inflate the variances.
        num_rungs: K, rungs above the prior's; the prior's own is drawn exactly.
        **options: as in `estimate_free_energy`, but inverse_temperature (β of the result) is 1 by
            default, the free energy itself; num_chains is 2 a rung, num_samples 4000.

    Raises:
        ValueError: an odd number of rungs or fewer than four; as `estimate_free_energy`.
    """
    given = options.pop("inverse_temperature", None)
    beta = 1.0 if given is None else given
    require_positive("inverse_temperature", beta)
    if num_rungs < 4 or num_rungs % 2:
        raise ValueError(f"num_rungs must be even and at least 4, got {num_rungs}")
    for name in ("batch_size", "thinning"):
        if name in options:
            raise TypeError(f"{name}: the variances need all the data in every step, each kept")
    localization = options.get("localization", DEFAULT_LOCALIZATION)
    own: ChainOptions = {
        "num_chains": 2,
        "num_samples": 4000,
        **options,
        "batch_size": None,
        "thinning": 1,
        "inverse_temperature": beta,  # each rung has its own, but 1/log n needs more than two data
    }
    rungs = beta * (torch.arange(1, num_rungs + 1) / num_rungs) ** LADDER_POWER
    chains = sample_local_posteriors(
        network,
        network.anchor[None],
        data,
        ladder=rungs,
        **own,
    )
    n, stats = chains.num_data, chains.draws.sample_stats
    if len(stats.chain) < len(chains.inverse_temperature):
        raise DivergedError(
            f"chains became non-finite: {chains.draws.attrs['failed_chains']}; "
            "give a smaller step_size"
        )
    energies = n * stats.loss.values.astype(np.float64).reshape(num_rungs, own["num_chains"], -1)
    ladder = pd.DataFrame(
        [
            _rung(0.0, _prior_energies(network, data, localization, n, options)),
            *(_rung(float(b), energies[k]) for k, b in enumerate(rungs)),
        ]
    )
    value, mcse = _integrate(ladder)
    coarse, _ = _integrate(ladder.iloc[::2])
    return ThermodynamicEstimate(value, mcse, abs(value - coarse), ladder, chains.draws)


def _prior_energies(
    network: FlatNetwork, data: Any, localization: float, n: int, options: ChainOptions
) -> NDArray[Any]:
    """(1, S) values of nL_n at exact draws from the localiser N(w*, I/γ)."""
    generator = torch.Generator().manual_seed(options.get("seed", 0) + 1)
    shape = (NUM_PRIOR_DRAWS, network.num_parameters)
    noise = torch.randn(shape, generator=generator, dtype=network.dtype).to(network.device)
    positions = network.anchor + noise / sqrt(localization)
    likelihood = options.get("likelihood", "categorical")
    losses = [
        held_out_loss(network, part, data, likelihood=likelihood)
        for part in torch.split(positions, 50)
    ]
    return n * torch.cat(losses).numpy()[None]


def _rung(beta: float, energy: NDArray[Any]) -> dict[str, float]:
    """energy (C, S) -> the rung's row."""
    mean, mcse, r_hat, ess = loss_summary(energy)
    return {
        "inverse_temperature": beta,
        "energy": mean,
        "energy_mcse": mcse,
        "variance": float(energy.var(ddof=1)),
        "r_hat": r_hat,
        "ess": ess,
    }


def _integrate(ladder: pd.DataFrame) -> tuple[float, float]:
    """∫ E db by the corrected trapezoid, and its Monte-Carlo standard error."""
    beta, energy, variance = (
        ladder[name].to_numpy() for name in ("inverse_temperature", "energy", "variance")
    )
    gaps = np.diff(beta)
    halves, twelfths = gaps / 2, gaps**2 / 12
    # Each rung's weight, so that its error is carried once and not twice.
    on_energy = np.append(halves, 0) + np.append(0, halves)
    on_variance = np.append(0, twelfths) - np.append(twelfths, 0)
    variance_error = variance * np.sqrt(2 / ladder["ess"].to_numpy())
    value = on_energy @ energy + on_variance @ variance
    squares = (on_energy * ladder["energy_mcse"].to_numpy()) ** 2 + (
        on_variance * variance_error
    ) ** 2
    return float(value), float(np.sqrt(squares.sum()))
