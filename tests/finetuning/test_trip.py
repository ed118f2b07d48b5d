"""How many calls lie between the question and the update that answers it."""

from __future__ import annotations

import inspect
import sys
from types import CodeType, FrameType
from typing import Any

import pytest
from cases.tuning import LABELS, X, network

import ppl_fe as fe
from ppl_fe.finetuning.bayestune import proximal_step, scale_chains
from ppl_fe.inference.step.compile import Built

MOST_CALLS = 5


def code_of(function: Any) -> CodeType:
    found: CodeType = inspect.unwrap(function).__code__
    return found


def test_the_update_is_few_calls_from_select_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """From `select_parameters` to the function that reads u and sets Δ' = √η u, run as written."""
    monkeypatch.setattr(scale_chains, "build", lambda function, *_, **__: Built(function, "eager"))
    start, read = code_of(fe.select_parameters), code_of(proximal_step.read_unit)
    trips: set[tuple[str, ...]] = set()

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code is read:
            caller, names = frame.f_back, []
            while caller is not None and caller.f_code is not start:
                if "ppl_fe" in caller.f_code.co_filename:
                    names.append(caller.f_code.co_name)
                caller = caller.f_back
            trips.add(tuple(reversed(names)))

    rule = fe.BayesTune(num_chains=1, num_samples=1, warmup_steps=1, thinning=1)
    sys.setprofile(look)
    try:
        fe.select_parameters(network(), (X, LABELS), rule=rule, sparsity=0.1, progress_bar=False)
    finally:
        sys.setprofile(None)
    assert trips
    assert max(len(trip) for trip in trips) <= MOST_CALLS, trips
