"""Which checkpoint to fine-tune, which parameters to update, has the sampler converged."""

from __future__ import annotations

from ppl_fe import models
from ppl_fe.data import as_data
from ppl_fe.free_energy import (
    FreeEnergyEstimate,
    ThermodynamicEstimate,
    estimate_free_energy,
    integrate_free_energy,
    rank_checkpoints,
)
from ppl_fe.inference.kernels import Kernel
from ppl_fe.inference.samplers import BAOAB, PSGLD, SGHMC, SGLD, SGNHT
from ppl_fe.inference.sampling import sample
from ppl_fe.networks import CheckpointError, FlatNetwork, load_checkpoint, read_checkpoint
from ppl_fe.version import __version__

__all__ = [
    "BAOAB",
    "PSGLD",
    "SGHMC",
    "SGLD",
    "SGNHT",
    "CheckpointError",
    "FlatNetwork",
    "FreeEnergyEstimate",
    "Kernel",
    "ThermodynamicEstimate",
    "__version__",
    "as_data",
    "estimate_free_energy",
    "integrate_free_energy",
    "load_checkpoint",
    "models",
    "rank_checkpoints",
    "read_checkpoint",
    "sample",
]
