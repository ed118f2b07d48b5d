"""From files and data sets to tensors: networks as functions of a vector, checkpoints, data."""

from ppl_fe.networks.checkpoints import load_checkpoint, read_checkpoint
from ppl_fe.networks.data import LoaderData, TensorData, as_data, check_labels
from ppl_fe.networks.flat import FlatNetwork
from ppl_fe.networks.matching import CheckpointError

__all__ = [
    "CheckpointError",
    "FlatNetwork",
    "LoaderData",
    "TensorData",
    "as_data",
    "check_labels",
    "load_checkpoint",
    "read_checkpoint",
]
