"""Hold the cases of the benchmark `same_draws.py`: runs of samplers, and of all built on them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module, util
from typing import Any

import torch
from torch import Tensor

Case = Callable[[], Any]


def randn(*shape: int, seed: int) -> Tensor:
    """Draw normal numbers from a generator of their own."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def first_of(name: str, *modules: str) -> Any:
    """Find a name in the first of the modules that has it: its place may change."""
    for module in modules:
        if util.find_spec(module) is not None and hasattr(import_module(module), name):
            return getattr(import_module(module), name)
    raise ImportError(f"{name} is in none of {', '.join(modules)}")
