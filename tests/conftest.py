"""Shared by all tests; lying here, it also puts `tests/` on the path, where `exact` is found."""

from __future__ import annotations

from pathlib import Path

import pyro
import pytest


@pytest.fixture(autouse=True)
def _no_parameters_left_over() -> None:
    # Pyro's parameters are global, and a program here may register some.
    pyro.clear_param_store()


@pytest.fixture
def benchmarks_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks are scripts beside the package: their folder is put where imports look."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
