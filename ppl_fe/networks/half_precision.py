"""Whether a processor multiplies faster in half precision, measured once."""

from __future__ import annotations

import time
import warnings
from functools import cache

import torch
from torch import Tensor

SHAPE = (256, 384, 384)  # of a product in a small transformer; some tenths of a millisecond
REPEATS = 5
SLOW = 2.0  # times, beyond what a busy machine does to a measurement


@cache
def slowness(dtype: torch.dtype) -> float:
    """Measure how many times longer a product of matrices takes in a precision than in float32.

    A processor without instructions for bfloat16 takes some fifty times as long in it.

    Args:
        dtype: such as torch.bfloat16.

    Returns:
        Below one where that is faster. Measured at the first call, and kept.
    """
    rows, inner, columns = SHAPE
    left, right = torch.ones(rows, inner), torch.ones(inner, columns)
    return _seconds(left.to(dtype), right.to(dtype)) / _seconds(left, right)


def warn_if_slow(dtype: torch.dtype) -> None:
    """Say so where this processor is much slower in a precision than in float32."""
    times = slowness(dtype)
    if times > SLOW:
        warnings.warn(
            f"autocast={dtype} takes {times:.0f} times as long as float32 on this processor, by a "
            "product of matrices timed just now; leave autocast out",
            UserWarning,
            stacklevel=4,
        )


def _seconds(left: Tensor, right: Tensor) -> float:
    times = []
    for _ in range(REPEATS + 1):  # the first one warms up
        started = time.perf_counter()
        torch.mm(left, right)
        times.append(time.perf_counter() - started)
    return min(times[1:])
