"""Which checkpoint to fine-tune: free energy, local learning coefficient, ranking.

ranking.py        several checkpoints, best first
ranking_rows.py   its rows in order, their probabilities, what to read first
ranking_table.py  their table, which shows its notes whole
candidates.py     their names, and which of them the data can be put through
kept_ranking.py   the folder that keeps a ranking, row by row
lots.py           which of them run side by side
lot_work.py       what is done with such a lot
places.py         in this process, or as tasks of an executor
racing.py         which of them go on until the best is clear
contenders.py     their chains in such a race, stage after stage
estimators.py     WBIC and local learning coefficient of one
estimate.py       these numbers with their error bars and notes
thermodynamic.py  −log Z itself, over a ladder of temperatures
thermodynamic_estimate.py  what that found
ladders.py        the ladders of several checkpoints, and the sum along each
neighbourhoods.py  γ by the evidence of the data
local_chains.py   the chains behind all of them
likelihood_check.py  is a likelihood of one's own one
chain_options.py  how these are made, and what "auto" chooses
correlation.py    does a criterion order checkpoints as their transfer does
baselines/        cheap criteria to beat
downstream/       which checkpoint, when there are a few labels
"""

from __future__ import annotations

from ppl_fe.free_energy.downstream.choice import choose_checkpoint
from ppl_fe.free_energy.estimate import FreeEnergyEstimate
from ppl_fe.free_energy.estimators import estimate_free_energy
from ppl_fe.free_energy.ranking import rank_checkpoints
from ppl_fe.free_energy.thermodynamic import integrate_free_energy
from ppl_fe.free_energy.thermodynamic_estimate import ThermodynamicEstimate

__all__ = [
    "FreeEnergyEstimate",
    "ThermodynamicEstimate",
    "choose_checkpoint",
    "estimate_free_energy",
    "integrate_free_energy",
    "rank_checkpoints",
]
