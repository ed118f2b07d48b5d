"""The memory that a run will have taken when it ends, from its first steps on."""

from __future__ import annotations

import sys

import torch

from ppl_fe.inference.record.recorder import Recorder
from ppl_fe.inference.step.chains import Chains
from ppl_fe.inference.step.trajectories import Trajectories

# Vectors (C, D) in hand while the stiffest direction is looked for, after the warm-up: eight, and
# four for what the allocator holds between them, which was up to two beyond the eight.
MEASURING = 12
TOLD_FROM = 1e9  # bytes; of less nothing need be said


def memory_of_run(chains: Chains | Trajectories, recorder: Recorder) -> float:
    """Predict the most memory, in bytes, that this process or its device will have held.

    What the steps have held so far is the system's own count; draws and moments are still to come.
    Vectors (C, D) below 32 MiB lie in glibc's heap, where holes may add up to an eighth to that.

    Args:
        chains: which have taken a few steps.
        recorder: of the run.
    """
    position = chains.position
    vector = position.numel() * position.element_size()
    ahead = MEASURING * vector if isinstance(chains, Chains) else 0
    return most_so_far(position.device) + ahead + recorder.bytes_to_come()


def most_so_far(device: torch.device) -> float:
    """Give the most bytes held so far: by this process, or on its device; 0 where none can tell."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return 0.0
    import resource

    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(found if sys.platform == "darwin" else 1024 * found)


def in_gigabytes(memory: float) -> str:
    """Write bytes as a clause of a line; "" for few.

    Example:
        >>> in_gigabytes(7.2e9), in_gigabytes(2e8)
        (', 7.2 GB of memory', '')
    """
    return f", {memory / 1e9:.2g} GB of memory" if memory >= TOLD_FROM else ""
