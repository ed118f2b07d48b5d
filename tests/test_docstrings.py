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


# Examples that run chains for seconds, of calls that the README and other tests make, too.
LONG = {
    "ppl_fe.demo.pretraining",
    "ppl_fe.diagnostics.diagnose_run",
    "ppl_fe.diagnostics.pointwise",
    "ppl_fe.diagnostics.predictive",
    "ppl_fe.diagnostics.scores",
    "ppl_fe.diagnostics.stein",
    "ppl_fe.finetuning.rules.bayes_tune",
    "ppl_fe.finetuning.select",
    "ppl_fe.finetuning.train.huggingface",
    "ppl_fe.free_energy.estimators",
    "ppl_fe.free_energy.ranking",
    "ppl_fe.free_energy.thermodynamic",
    "ppl_fe.inference.adjusted",
    "ppl_fe.inference.samplers",
    "ppl_fe.inference.sampling",
    "ppl_fe.plots.layer_plots",
    "ppl_fe.plots.rank_plots",
    "ppl_fe.plots.temperature_plots",
}


def test_the_long_ones_are_there() -> None:
    assert set(MODULES) >= LONG


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.thorough) if name in LONG else name
        for name in dict.fromkeys(MODULES)
    ],
)
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    modules = [importlib.import_module(name) for name in dict.fromkeys(MODULES)]
    found = [test for module in modules for test in finder.find(module) if test.examples]
    assert len(found) > 30
