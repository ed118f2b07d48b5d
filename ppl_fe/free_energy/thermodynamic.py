"""The local free energy −log Z itself, by thermodynamic integration over a ladder of β."""

from __future__ import annotations

import os
from dataclasses import dataclass
from html import escape
from math import sqrt
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import xarray as xr
from numpy.typing import NDArray

from ppl_fe.arguments import named_arguments, require_positive
from ppl_fe.diagnostics.checks.mixing import errors_believed
from ppl_fe.diverged import DivergedError
from ppl_fe.free_energy.estimators import loss_summary
from ppl_fe.free_energy.local_chains import (
    USUAL_LENGTH,
    ChainOptions,
    held_out_loss,
    sample_local_posteriors,
)
from ppl_fe.inference.kernels import Kernel
from ppl_fe.inference.record.netcdf import write_netcdf
from ppl_fe.inference.run_plan import RunLength
from ppl_fe.inference.step.compile import CompileMode
from ppl_fe.models.likelihoods import Likelihood
from ppl_fe.networks.flat import FlatNetwork, require_network

NUM_PRIOR_DRAWS = 1000
LADDER_POWER = 5  # rungs at β(k/K)^5, dense near the prior (Friel & Pettitt 2008)


@dataclass(frozen=True, repr=False)
class ThermodynamicEstimate:
    """F = −log Z at β, in nats; prints as a line and its ladder.

    Attributes:
        free_energy: F(β) = −log ∫ exp(−nβL_n(w)) N(w; w*, I/γ) dw.
        mcse: Monte-Carlo standard error, over the rungs' own; printed as "—" where a rung's R-hat
            and ESS say that it is worth nothing.
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
        """Give the ladder, one row a rung; `fe.plots.plot_ladder` draws it."""
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
            f"worst R-hat {r_hat.max():.3f}"
        )

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<p>{escape(str(self))}</p>{self.ladder.to_html(float_format='{:.4g}'.format)}"


@named_arguments
def integrate_free_energy(
    network: FlatNetwork,
    data: Any,
    *,
    num_rungs: int = 24,
    likelihood: str | Likelihood = ChainOptions.likelihood,
    localization: float = ChainOptions.localization,
    inverse_temperature: float = 1.0,
    kernel: type[Kernel] = ChainOptions.kernel,
    step_size: float | Literal["auto"] = ChainOptions.step_size,
    tolerance: float = ChainOptions.tolerance,
    num_chains: int = 2,
    num_samples: int = 4000,
    warmup_steps: int = USUAL_LENGTH.warmup_steps,
    chain_method: Literal["vectorized", "sequential", "parallel"] = ChainOptions.chain_method,
    seed: int = ChainOptions.seed,
    save_to: str | Path | None = ChainOptions.save_to,
    progress_bar: bool = ChainOptions.progress_bar,
    compile: CompileMode = ChainOptions.compile,
) -> ThermodynamicEstimate:
    """Estimate the local free energy of a network's anchor by thermodynamic integration.

        F(β) = −log ∫ exp(−nβL_n(w)) N(w; w*, I/γ) dw = ∫₀^β E_b[nL_n] db,

    with E_b under exp(−nbL_n) N(w; w*, I/γ), so that F(0) = 0: the localiser is normalised. Rungs
    b_k = β(k/K)^5 run side by side as further chains. Between rungs the trapezoid is corrected by
    dE/db = −Var_b[nL_n]: ∫ ≈ Δ(E_k + E_{k+1})/2 + Δ²(V_{k+1} − V_k)/12 (Friel, Hurn & Wyse 2014).

    All data are used in every step and every step is kept, since minibatches and thinning would
    inflate the variances: there is no batch_size and no thinning.

    Args:
        network: a `FlatNetwork`; its anchor is w*.
        data: as in `estimate_free_energy`.
        num_rungs: K, rungs above the prior's, 24 by default; the prior's own is drawn exactly.
        likelihood: as in `estimate_free_energy`, "categorical" by default.
        localization: γ, 1.0 by default.
        inverse_temperature: β of the result, 1.0 by default: the free energy itself.
        kernel: the sampler's class, `fe.BAOAB` by default.
        step_size: ε; "auto" by default.
        tolerance: as in `estimate_free_energy`, 0.02 by default.
        num_chains: chains a rung, 2 by default.
        num_samples: S, steps a chain after its warm-up, 4000 by default.
        warmup_steps: 1000 by default.
        chain_method: as in `fe.sample`, "vectorized" by default.
        seed: 0 by default.
        save_to: new zarr folder for the draws; none by default.
        progress_bar: True by default.
        compile: as in `fe.sample`, "auto" by default.

    Raises:
        TypeError: a misspelt argument, before any work is done.
        ValueError: an odd number of rungs or fewer than four; as `estimate_free_energy`.
        DivergedError: a chain did not stay finite.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> line = torch.nn.Linear(1, 1, bias=False)
        >>> found = integrate_free_energy(
        ...     FlatNetwork(line), (torch.ones(5, 1), torch.zeros(5)), likelihood="normal",
        ...     num_rungs=4, num_samples=100, progress_bar=False)
        >>> len(found.ladder)
        5
    """
    require_positive("inverse_temperature", inverse_temperature)
    if num_rungs < 4 or num_rungs % 2:
        raise ValueError(f"num_rungs must be even and at least 4, got {num_rungs}")
    require_network(network)
    options = ChainOptions(
        likelihood=likelihood,
        localization=localization,
        inverse_temperature=inverse_temperature,  # each rung has its own; 1/log n needs n > 2
        kernel=kernel,
        step_size=step_size,
        tolerance=tolerance,
        batch_size=None,
        num_chains=num_chains,
        length=RunLength(num_samples, warmup_steps),
        chain_method=chain_method,
        seed=seed,
        save_to=save_to,
        progress_bar=progress_bar,
        compile=compile,
    )
    steps = torch.arange(1, num_rungs + 1) / num_rungs
    rungs = inverse_temperature * steps**LADDER_POWER
    chains = sample_local_posteriors(network, network.anchor[None], data, options, ladder=rungs)
    n, stats = chains.num_data, chains.draws.sample_stats
    if len(stats.chain) < len(chains.inverse_temperature):
        raise DivergedError(
            f"chains became non-finite: {chains.draws.attrs['failed_chains']}; "
            "give a smaller step_size"
        )
    energies = n * stats.loss.values.astype(np.float64).reshape(num_rungs, num_chains, -1)
    ladder = pd.DataFrame(
        [
            _rung(0.0, _prior_energies(network, data, n, options)),
            *(_rung(float(b), energies[k]) for k, b in enumerate(rungs)),
        ]
    )
    value, mcse = _integrate(ladder)
    coarse, _ = _integrate(ladder.iloc[::2])
    return ThermodynamicEstimate(value, mcse, abs(value - coarse), ladder, chains.draws)


def _prior_energies(network: FlatNetwork, data: Any, n: int, options: ChainOptions) -> NDArray[Any]:
    """Compute nL_n at exact draws from the localiser N(w*, I/γ), (1, S)."""
    generator = torch.Generator().manual_seed(options.seed + 1)
    shape = (NUM_PRIOR_DRAWS, network.num_parameters)
    noise = torch.randn(shape, generator=generator, dtype=network.dtype).to(network.device)
    positions = network.anchor + noise / sqrt(options.localization)
    losses = [
        held_out_loss(network, part, data, likelihood=options.likelihood)
        for part in torch.split(positions, 50)
    ]
    return n * torch.cat(losses).numpy()[None]


def _rung(beta: float, energy: NDArray[Any]) -> dict[str, float]:
    """Summarise the energies (C, S) of a rung as its row."""
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
    """Integrate E db by the corrected trapezoid; give it and its Monte-Carlo standard error."""
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
