"""Which checkpoint to fine-tune: free energy, local learning coefficient, ranking."""

from __future__ import annotations

from ppl_fe.free_energy.estimate import FreeEnergyEstimate
from ppl_fe.free_energy.estimators import estimate_free_energy
from ppl_fe.free_energy.ranking import rank_checkpoints
from ppl_fe.free_energy.thermodynamic import ThermodynamicEstimate, integrate_free_energy

__all__ = [
    "FreeEnergyEstimate",
    "ThermodynamicEstimate",
    "estimate_free_energy",
    "integrate_free_energy",
    "rank_checkpoints",
]
