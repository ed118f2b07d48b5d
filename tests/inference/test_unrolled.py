"""A program that a Python loop makes long is told the line that does it, before it is traced."""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_fe as fe
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.step import unrolled
from ppl_fe.inference.step.unrolled import warn_of_unrolled_loop


def recurrence(y: Tensor) -> None:
    a = pyro.sample("a", dist.Uniform(0.0, 1.0))
    variances = [torch.ones(())]
    for t in range(1, len(y)):
        variances.append(0.1 + a * (y[t - 1] ** 2 + variances[-1]))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(0.0, torch.stack(variances).sqrt()), obs=y)


LOOP = recurrence.__code__.co_firstlineno + 4


def test_the_line_is_named_with_what_it_costs() -> None:
    """Five operations a step, 499 steps: select, square, add, multiply, add."""
    with pytest.warns(RuntimeWarning) as told:
        warn_of_unrolled_loop(Density(recurrence, (torch.ones(500),)), torch.zeros(1))
    (message,) = [str(one.message) for one in told]
    before, after = message.split(" operations; ")
    assert before.startswith("one evaluation of the program takes 2,5")
    assert after == (
        f"2,495 of them in line {LOOP} of test_unrolled.py: is that in a Python loop? It is "
        "unrolled, so that tracing takes about 13 s and compiling far longer. Write it with "
        "tensors over all steps at once (torch.cumsum, a matrix product, "
        "torch.linalg.solve_triangular for a recurrence), or pass compile='traced'"
    )


def test_a_short_loop_and_a_long_tensor_are_no_matter() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_unrolled_loop(Density(recurrence, (torch.ones(100),)), torch.zeros(1))


def test_a_run_says_it_unless_it_is_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unrolled, "MANY_OPERATIONS", 30)
    y = torch.ones(10)
    for kernel in (fe.MALT(recurrence), fe.SGLD(recurrence, step_size=1e-3)):
        with pytest.warns(RuntimeWarning, match=f"45 of them in line {LOOP} of test_unrolled"):
            fe.sample(
                kernel,
                y,
                num_samples=4,
                warmup_steps=0,
                num_chains=1,
                compile="traced",
                progress_bar=False,
            )
        fe.sample(
            kernel,
            y,
            num_samples=4,
            warmup_steps=0,
            num_chains=1,
            compile="eager",
            progress_bar=False,
        )
