"""A misspelt argument of a public call is refused by the name of that call."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import pytest

from ppl_fe import data, diagnostics, free_energy, networks, plots
from ppl_fe.arguments import refuse_foreign

FOLDERS = (data, diagnostics, free_energy, networks, plots)


def calls(folder: ModuleType) -> list[Any]:
    """Every public function, and the classes that a user makes."""
    found = [getattr(folder, name) for name in folder.__all__]
    return [each for each in found if inspect.isfunction(each) or each is networks.FlatNetwork]


@pytest.mark.parametrize(
    "call", [call for folder in FOLDERS for call in calls(folder)], ids=lambda call: call.__name__
)
def test_a_misspelt_argument_is_refused_by_the_name_of_the_call(call: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{call.__name__}\(\) has no argument 'colour_of_it'"):
        call(colour_of_it=1)


def test_what_a_program_without_a_signature_takes_is_left_to_it() -> None:
    refuse_foreign("sample", max, {"key"}, {"seed"})
    with pytest.raises(TypeError, match=r"sample\(\) has no argument 'sed'; did you mean seed"):
        refuse_foreign("sample", lambda x: x, {"sed"}, {"seed"})
