"""From data sets in any usual form to checked tensors or minibatches.

Apart from networks, because the engine takes a DataLoader for any Pyro program.

    sources.py  any form -> tensors in memory, or a loader of known length
    loaders.py  a loader as endless checked batches, one stream a chain
    rows.py     what both are held to: rows of equal number, finite, labels in range
    digests.py  what tells one data set from another
"""

from __future__ import annotations

from ppl_fe.data.loaders import LoaderData
from ppl_fe.data.sources import TensorData, as_data, check_labels

__all__ = ["LoaderData", "TensorData", "as_data", "check_labels"]
