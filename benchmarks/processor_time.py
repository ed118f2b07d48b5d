"""Processor seconds, those of a compiler's process among them."""

from __future__ import annotations

import os


def processor_seconds() -> float:
    """Seconds of this process and of those that it has waited for, such as a C++ compiler."""
    return sum(os.times()[:4])
