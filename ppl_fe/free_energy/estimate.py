"""What was estimated of one checkpoint: numbers with error bars, the notes on them, the draws."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields

import pandas as pd
import xarray as xr

from ppl_fe.diagnostics.checks.mixing import errors_believed
from ppl_fe.inference.record.netcdf import write_netcdf
from ppl_fe.renamed import warn_of_old_name
from ppl_fe.settings_table import settings_table


@dataclass(frozen=True, repr=False)
class FreeEnergyEstimate:
    """What `estimate_free_energy` returns; prints as a table.

    Attributes:
        wbic: E[nL_n(w)] at β, in nats: the pretraining WBIC at β = 1/log n.
        wbic_mcse: its Monte-Carlo standard error, from the effective sample size; printed as "—"
            where R-hat and ESS say that it is worth nothing.
        llc: λ̂ = nβ(E[L_n(w)] − L_n(w*)), the local learning coefficient.
        llc_mcse: its Monte-Carlo standard error.
        anchor_loss: L_n(w*), nats an example, on all the data.
        num_data: n, the number of examples.
        inverse_temperature: β.
        localization: γ.
        r_hat: rank-normalised split R-hat of the loss trace.
        ess: its bulk effective sample size.
        step_size: ε, the mean over chains.
        notes: what to read before the number is used; empty if nothing is amiss.
        draws: the chains.
    """

    wbic: float
    wbic_mcse: float
    llc: float
    llc_mcse: float
    anchor_loss: float
    num_data: int
    inverse_temperature: float
    localization: float
    r_hat: float
    ess: float
    step_size: float
    notes: tuple[str, ...]
    draws: xr.DataTree

    @property
    def n(self) -> int:
        """Old name of `num_data`."""
        warn_of_old_name("FreeEnergyEstimate.n", "num_data")
        return self.num_data

    def to_dataframe(self) -> pd.DataFrame:
        """Give the numbers as one row, with the columns of `rank_checkpoints`."""
        names = ("wbic", "wbic_mcse", "llc", "llc_mcse", "anchor_loss", "r_hat", "ess", "step_size")
        return pd.DataFrame(
            [{**{name: getattr(self, name) for name in names}, "note": "; ".join(self.notes)}]
        )

    def to_netcdf(self, path: str | os.PathLike[str]) -> None:
        """Write the draws as a netCDF file, the numbers above as attributes of its root.

        Opened by `xr.open_datatree(path)`, or by ArviZ. An older file is replaced; `notes` are
        JSON.

        Raises:
            ImportError: without h5netcdf: pip install 'ppl-fe[netcdf]'.
        """
        numbers = {one.name: getattr(self, one.name) for one in fields(self)}
        del numbers["draws"]
        write_netcdf(self.draws, path, numbers)

    def _rows(self) -> list[tuple[str, str]]:
        believed = errors_believed(self.r_hat, self.ess)
        wbic_error = f"{self.wbic_mcse:.2f}" if believed else "—"
        llc_error = f"{self.llc_mcse:.3f}" if believed else "—"
        return [
            ("WBIC  E[nL]", f"{self.wbic:.2f} ± {wbic_error} nats"),
            ("λ̂  nβ(E[L] − L(w*))", f"{self.llc:.3f} ± {llc_error}"),
            ("L(w*)", f"{self.anchor_loss:.5f} nats an example, n = {self.num_data}"),
            (
                "β, γ, ε",
                f"{self.inverse_temperature:.4g}, {self.localization:.4g}, {self.step_size:.3g}",
            ),
            ("R-hat, ESS of the loss", f"{self.r_hat:.3f}, {self.ess:.0f}"),
        ]

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self._rows())
        lines = [f"{name:<{width}}  {value}" for name, value in self._rows()]
        return "\n".join(["Free energy", *lines, *(f"note: {note}" for note in self.notes)])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        notes = (("note", note) for note in self.notes)
        return settings_table("Free energy", [*self._rows(), *notes])
