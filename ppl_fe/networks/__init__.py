"""From files to tensors: networks as functions of one vector, checkpoints as vectors."""

from __future__ import annotations

from ppl_fe.networks.checkpoints import load_checkpoint, read_checkpoint
from ppl_fe.networks.flat import FlatNetwork
from ppl_fe.networks.matching import CheckpointError

__all__ = ["CheckpointError", "FlatNetwork", "load_checkpoint", "read_checkpoint"]
