"""What thermodynamic integration found of one checkpoint: −log Z, its errors, its ladder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from html import escape

import pandas as pd
import xarray as xr

from ppl_fe.diagnostics.checks.mixing import errors_believed
from ppl_fe.inference.record.netcdf import write_netcdf


@dataclass(frozen=True, repr=False)
class ThermodynamicEstimate:
    """F = −log Z at β, in nats; prints as a line and its ladder.

    Attributes:
        free_energy: F(β) = −log ∫ exp(−nβL_n(w)) N(w; w*, I/γ) dw; a fresh head has N(0, I/τ) in
            place of that localiser.
        mcse: Monte-Carlo standard error, over the rungs' own; printed as "—" where a rung's R-hat
            and ESS say that it is worth nothing.
        ladder_error: how far the result is from that of every second rung: an upper bound, about
            sixteen times too large, of the ladder's own discretisation error.
        ladder: one row a rung: inverse_temperature, energy E[nL_n], energy_mcse, variance, r_hat,
            ess.
        draws: the chains, rung after rung.
        localization: γ.
        neighbourhoods: where γ was chosen by the data, what was tried: localization, free_energy,
            mcse, and the worst r_hat and ess of its rungs; None where γ was given.
    """

    free_energy: float
    mcse: float
    ladder_error: float
    ladder: pd.DataFrame
    draws: xr.DataTree
    localization: float = 1.0
    neighbourhoods: pd.DataFrame | None = None

    def to_dataframe(self) -> pd.DataFrame:
        """Give the ladder, one row a rung; `fe.plots.plot_ladder` draws it."""
        return self.ladder.copy()

    def to_netcdf(self, path: str | os.PathLike[str]) -> None:
        """Write the draws as a netCDF file, the ladder as its group `ladder`.

        Opened by `xr.open_datatree(path)`, or by ArviZ; the numbers above are attributes of its
        root, and what was tried of γ is the group `neighbourhoods`. An older file is replaced.

        Raises:
            ImportError: without h5netcdf: pip install 'ppl-fe[netcdf]'.
        """
        names = ("free_energy", "mcse", "ladder_error", "localization")
        groups = {"ladder": xr.Dataset.from_dataframe(self.ladder.rename_axis("rung"))}
        if self.neighbourhoods is not None:
            tried = self.neighbourhoods.rename_axis("tried")
            groups["neighbourhoods"] = xr.Dataset.from_dataframe(tried)
        write_netcdf(self.draws, path, {name: getattr(self, name) for name in names}, groups)

    def __str__(self) -> str:
        # The prior's own draws are independent, and no chains.
        r_hat, ess = self.ladder["r_hat"].iloc[1:], self.ladder["ess"].iloc[1:]
        unmixed = [not errors_believed(*pair) for pair in zip(r_hat, ess, strict=True)].count(True)
        error, how = f"{self.mcse:.3f}", "Monte Carlo"
        if unmixed:
            error = "—"
            how = (
                f"{unmixed} rungs have not mixed, R-hat up to {r_hat.max():.2f}, ESS down to "
                f"{ess.min():.0f}: raise num_samples"
            )
        return (
            f"−log Z = {self.free_energy:.3f} ± {error} nats ({how}), "
            f"ladder of {len(self.ladder)} rungs: error below {self.ladder_error:.3f}, "
            f"worst R-hat {r_hat.max():.3f}" + self._choice()
        )

    def _choice(self) -> str:
        """Say how γ was chosen, if it was."""
        if self.neighbourhoods is None:
            return ""
        tried = self.neighbourhoods["localization"]
        inside = tried.min() < self.localization < tried.max()
        return (
            f"; γ = {self.localization:.4g} by the data's evidence, "
            f"{'within' if inside else 'at the edge of'} {tried.min():.4g} to {tried.max():.4g}"
        )

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<p>{escape(str(self))}</p>{self.ladder.to_html(float_format='{:.4g}'.format)}"
