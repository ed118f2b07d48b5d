"""Shared by all tests; lying here, it also puts `tests/` on the path, where `exact` is found."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from math import inf
from pathlib import Path

import pyro
import pytest

from ppl_fe.files import state_file
from ppl_fe.inference.record import recorder
from ppl_fe.inference.run import warm_up
from ppl_fe.inference.step import compile


@pytest.fixture(autouse=True)
def _no_parameters_left_over() -> None:
    # Pyro's parameters are global, and a program here may register some.
    pyro.clear_param_store()


@pytest.fixture(autouse=True)
def _no_figures_left_open() -> Iterator[None]:
    """Figures are pyplot's, which warns of those that nobody closes."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")


@pytest.fixture(autouse=True, scope="session")
def _commits_whenever_they_may_be_and_no_wait_for_the_disk() -> Iterator[None]:
    """How far a killed run has come then depends on no clock, and power cuts are not tried."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_file, "COMMIT_SHARE", inf)
        for module in (recorder, warm_up):
            patch.setattr(module, "FLUSH_SECONDS", inf)
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _compiled_code_checks_what_it_is_given() -> Iterator[None]:
    """Without that a tensor of other strides than those it was compiled for is read as garbage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(compile.OPTIONS, "size_asserts", True)
        yield


@pytest.fixture
def benchmarks_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks are scripts beside the package: their folder is put where imports look."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
