"""Every example in a docstring runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import ppl_fe

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(ppl_fe.__path__, "ppl_fe.")
) + sorted(
    f"ppl_fe.models.{module.name}" for module in pkgutil.iter_modules(ppl_fe.models.__path__)
)


@pytest.mark.parametrize("name", dict.fromkeys(MODULES))
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    modules = [importlib.import_module(name) for name in dict.fromkeys(MODULES)]
    found = [test for module in modules for test in finder.find(module) if test.examples]
    assert len(found) > 30
