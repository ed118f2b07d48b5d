"""The estimators' signatures: all options with their defaults; misspelt ones refused at once."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import nn

import ppl_fe as fe
from ppl_fe.free_energy.chain_options import USUAL_LENGTH, ChainOptions

DATA = torch.zeros(10, 2), torch.zeros(10)
OPTIONS = {field.name: field.default for field in fields(ChainOptions)}
# Of a length that is not given there is none: the chains run until their targets.
OPTIONS |= dict.fromkeys(vars(OPTIONS.pop("length") or USUAL_LENGTH))


def options_of(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    assert all(p.kind is not p.VAR_KEYWORD for p in parameters)
    return {p.name: p.default for p in parameters if p.name in OPTIONS}


@pytest.mark.parametrize("function", [fe.estimate_free_energy, fe.rank_checkpoints])
def test_every_option_is_shown_with_the_default_it_has(function: Callable[..., Any]) -> None:
    assert options_of(function) == OPTIONS


def test_the_ladder_s_own_defaults() -> None:
    own = {"inverse_temperature": 1.0, "num_chains": 2}
    expected = {**OPTIONS, **own}
    # All the data in every step, and every step kept.
    del expected["batch_size"], expected["thinning"]
    assert options_of(fe.integrate_free_energy) == expected


@pytest.mark.parametrize(
    "function", [fe.estimate_free_energy, fe.integrate_free_energy, fe.rank_checkpoints]
)
def test_every_argument_has_an_entry_of_its_own(function: Callable[..., Any]) -> None:
    text = inspect.getdoc(function) or ""
    for name in inspect.signature(function).parameters:
        entries = ("chain_method, seed, save_to, progress_bar, compile", name)
        assert any(f"\n    {entry}: " in text for entry in entries), name


def test_a_misspelt_option_is_refused_at_once() -> None:
    started = time.process_time()
    with pytest.raises(TypeError, match=r"^estimate_free_energy\(\) .*did you mean num_samples\?"):
        fe.estimate_free_energy(fe.FlatNetwork(nn.Linear(2, 1)), DATA, num_sample=3)  # type: ignore[call-arg]
    assert time.process_time() - started < 0.1


def test_a_misspelt_option_is_refused_before_any_file_is_read() -> None:
    with pytest.raises(TypeError, match=r"^rank_checkpoints\(\) .*it is called warmup_steps here"):
        fe.rank_checkpoints({"a": "nowhere.pt"}, nn.Linear(2, 1), DATA, num_warmup=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^integrate_free_energy\(\) has no argument 'gamma'"):
        fe.integrate_free_energy(fe.FlatNetwork(nn.Linear(2, 1)), DATA, gamma=3)  # type: ignore[call-arg]
