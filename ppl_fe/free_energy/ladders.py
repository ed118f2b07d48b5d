"""Ladders of temperatures about several checkpoints, and the sum along each."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from ppl_fe.data.sources import LoaderData, TensorData
from ppl_fe.diverged import DivergedError
from ppl_fe.free_energy.chain_options import ChainOptions
from ppl_fe.free_energy.estimators import loss_summary
from ppl_fe.free_energy.local_chains import (
    FreshHead,
    held_out_loss,
    program_and_kernel,
    sample_local_posteriors,
)
from ppl_fe.inference.run_plan import RunLength
from ppl_fe.inference.step.builder import BuiltSteps
from ppl_fe.networks.flat import FlatNetwork

NUM_PRIOR_DRAWS = 250  # a quarter of the error that the chains of the other rungs leave
LADDER_POWER = 5  # rungs at β(k/K)^5, dense near the prior (Friel & Pettitt 2008)
PILOT_RUNGS, PILOT_STEPS = 12, 100  # of the run by which rungs are placed


class Climbed(NamedTuple):
    """F = −log Z of one checkpoint; the fields are those of `ThermodynamicEstimate`."""

    free_energy: float
    mcse: float
    ladder_error: float
    ladder: pd.DataFrame

    @property
    def r_hat(self) -> float:
        """Give the worst of the rungs; the prior's own draws are independent, and no chains."""
        return float(self.ladder["r_hat"].iloc[1:].max())

    @property
    def ess(self) -> float:
        """Give the smallest of the rungs."""
        return float(self.ladder["ess"].iloc[1:].min())


@dataclass(frozen=True)
class Ladders:
    """What is integrated, and over which rungs.

    Attributes:
        network: the architecture, and all that its checkpoints share.
        source: the data.
        options: of the chains; its inverse temperature is that of the last rung.
        num_rungs: K, rungs above the prior's own.
        head: the fresh head, or None.
        placed_at: inverse temperatures of the rungs; None for β(k/K)^5.
        steps: what has been built for ladders of this architecture and its data.
    """

    network: FlatNetwork
    source: TensorData | LoaderData
    options: ChainOptions
    num_rungs: int
    head: FreshHead | None
    placed_at: tuple[float, ...] | None = None
    steps: BuiltSteps = field(default_factory=BuiltSteps, repr=False, compare=False)

    @property
    def rungs(self) -> Tensor:
        """Give the inverse temperatures above zero, (K,)."""
        assert self.options.inverse_temperature is not None
        if self.placed_at is not None:
            return torch.tensor(self.placed_at)
        steps = torch.arange(1, self.num_rungs + 1) / self.num_rungs
        return self.options.inverse_temperature * steps**LADDER_POWER

    def at(self, localization: float, head_precision: float | None = None) -> Ladders:
        """Copy them with another γ, at which no rung has been placed.

        Args:
            localization: γ.
            head_precision: of the fresh head's prior; as it is by default.
        """
        options, head = replace(self.options, localization=localization), self.head
        if head is not None and head_precision is not None:
            head = replace(head, precision=head_precision)
        return replace(self, options=options, head=head, placed_at=None)

    def placed(self, anchors: Tensor) -> Ladders:
        """Place the rungs by a short run, at equal lengths of √Var_b[nL_n] db between them.

        That variance is the Fisher information of b, and of ladders with as many draws on each rung
        those of equal lengths have about the least error (Gelman & Meng 1998).

        Args:
            anchors: (G, D) checkpoints whose variances are averaged.
        """
        length = RunLength(PILOT_STEPS, warmup_steps=PILOT_STEPS)
        options = replace(self.options, length=length, progress_bar=False)
        pilot = replace(self, options=options, num_rungs=PILOT_RUNGS, placed_at=None)
        ladders = [one.ladder for one in pilot.climb(anchors)[0]]
        variance = np.mean([one["variance"] for one in ladders], 0)
        beta = ladders[0]["inverse_temperature"].to_numpy()
        return replace(self, placed_at=equal_lengths(beta, variance, self.num_rungs))

    def climb(self, anchors: Tensor) -> tuple[list[Climbed], xr.DataTree]:
        """Run the chains of all rungs of all checkpoints side by side, and sum along each ladder.

        Args:
            anchors: (G, D) weights; what they hold of the fresh head does not matter.

        Returns:
            F of each, and the draws: of each checkpoint rung after rung.

        Raises:
            DivergedError: a chain did not stay finite.
        """
        options, rungs = self.options, self.rungs
        chains = sample_local_posteriors(
            self.network,
            anchors,
            self.source,
            options,
            ladder=rungs,
            head=self.head,
            steps=self.steps,
        )
        n, stats = chains.num_data, chains.draws.sample_stats
        if len(stats.chain) < len(chains.inverse_temperature):
            raise DivergedError(
                f"chains became non-finite: {chains.draws.attrs['failed_chains']}; "
                "give a smaller step_size"
            )
        shape = (len(anchors), len(rungs), options.num_chains, -1)
        energies = n * stats.loss.values.astype(np.float64).reshape(shape)
        found = []
        for anchor, own in zip(anchors, energies, strict=True):
            ladder = pd.DataFrame(
                [
                    _rung(0.0, self._prior_energies(anchor)),
                    *(_rung(float(b), own[k]) for k, b in enumerate(rungs)),
                ]
            )
            value, mcse = corrected_trapezoid(ladder)
            coarse, _ = corrected_trapezoid(ladder.iloc[::2])
            found.append(Climbed(value, mcse, abs(value - coarse), ladder))
        return found, chains.draws

    def _prior_energies(self, anchor: Tensor) -> NDArray[Any]:
        """Compute nL_n at exact draws from the prior of one checkpoint, (1, S)."""
        network, options = self.network, self.options
        generator = torch.Generator().manual_seed(options.seed + 1)
        shape = (NUM_PRIOR_DRAWS, network.num_parameters)
        noise = torch.randn(shape, generator=generator, dtype=network.dtype).to(network.device)
        if self.head is None:
            positions = anchor + noise / sqrt(options.localization)
        else:
            program, _ = program_and_kernel(network, self.source, options, self.head)
            positions = program.weights(noise, program.center(anchor))
        losses = [
            held_out_loss(network, part, self.source, likelihood=options.likelihood)
            for part in torch.split(positions, 50)
        ]
        return self.source.num_data * torch.cat(losses).numpy()[None]


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


def equal_lengths(beta: NDArray[Any], variance: NDArray[Any], num_rungs: int) -> tuple[float, ...]:
    """Place rungs at equal lengths of √V db, log V linear in b^(1/5) between those that are known.

    Args:
        beta: (R,) inverse temperatures, rising from zero.
        variance: (R,) V there.
        num_rungs: K.

    Returns:
        K inverse temperatures above zero, the last that of `beta`.

    Example:
        >>> equal_lengths(np.array([0.0, 0.5, 1.0]), np.array([2.0, 2.0, 2.0]), 4)
        (0.25, 0.5, 0.75, 1.0)
    """
    known, fine = beta ** (1 / LADDER_POWER), np.linspace(0, beta[-1] ** (1 / LADDER_POWER), 10_001)
    root = np.exp(0.5 * np.interp(fine, known, np.log(np.maximum(variance, 1e-300))))
    between = np.diff(fine**LADDER_POWER) * (root[1:] + root[:-1]) / 2
    length = np.append(0.0, between.cumsum())
    places = np.interp(np.arange(1, num_rungs) / num_rungs * length[-1], length, fine)
    return (*(places**LADDER_POWER).round(6).tolist(), float(beta[-1]))


def corrected_trapezoid(ladder: pd.DataFrame) -> tuple[float, float]:
    """Integrate E db by the corrected trapezoid; give it and its Monte-Carlo standard error.

    ∫ ≈ Σ Δ(E_k + E_{k+1})/2 + Δ²(V_{k+1} − V_k)/12, by dE/db = −Var_b[nL_n].

    Args:
        ladder: as in `ThermodynamicEstimate`.
    """
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
