"""From files to tensors: networks as functions of one vector, checkpoints as vectors."""

from __future__ import annotations

from ppl_fe.networks.checkpoints import load_checkpoint, read_checkpoint
from ppl_fe.networks.delta_format import DeltaError
from ppl_fe.networks.deltas import AppliedDelta, apply_delta, save_delta
from ppl_fe.networks.flat import FlatNetwork
from ppl_fe.networks.matching import CheckpointError

__all__ = [
    "AppliedDelta",
    "CheckpointError",
    "DeltaError",
    "FlatNetwork",
    "apply_delta",
    "load_checkpoint",
    "read_checkpoint",
    "save_delta",
]
