"""From files to tensors: networks as functions of one vector, checkpoints as vectors.

In, each file using those above it:

    hub_names.py        what files of the Hugging Face hub hold beside or instead
    matching.py         a state dict under a module's own names
    parameter_names.py  which parameters are meant, by names and patterns
    fresh_weights.py    weights that a checkpoint did not have
    functional_copy.py  a copy of a module that torch.func can call
    half_precision.py   whether a processor multiplies faster in it
    flat.py             a module as a function f(w, x) of one vector w
    checkpoints.py      checkpoint files -> state dicts and vectors
    check_forward.py    the first rows of the data through a network

and out again:

    hashes.py           which weights a file belongs to
    delta_format.py     the file of what fine-tuning changed
    deltas.py           that put onto a module, and taken off
"""

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
