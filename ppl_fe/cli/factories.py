"""MODULE:FACTORY on the command line: networks and data come from the user's own code."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ppl_fe.arguments import did_you_mean

FACTORY = "MODULE:FACTORY"


def find_factory(option: str, text: str) -> Callable[[], Any]:
    """Find `module:factory` on the path or in the current folder, to be called when it is time.

    Returns:
        The factory, whose failure is a ValueError with the line of the user's code.

    Raises:
        ValueError: not of that form, no such attribute, or the user's module failed; the message
            has the line where.
        ImportError: there is no such module.
    """
    module_name, _, name = text.partition(":")
    if not module_name or not name:
        raise ValueError(f"{option} must be {FACTORY}, got {text!r}")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = _module(option, module_name)
    if not hasattr(module, name):
        public = [own for own in vars(module) if not own.startswith("_")]
        near = did_you_mean(name, public)
        raise ValueError(f"{option}: module {module_name!r} has no {name!r}{near and f'; {near}'}")
    factory = getattr(module, name)
    if not callable(factory):
        raise ValueError(f"{option}: {text} is no function, but of type {type(factory).__name__}")

    def called() -> Any:
        try:
            return factory()
        except Exception as error:
            raise ValueError(f"{option}: {text} failed: {_in_words(error)}") from error

    return called


def _module(option: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name.partition(".")[0]:
            files = (file.stem for file in Path.cwd().glob("*.py"))
            near = did_you_mean(name, files)
            raise ImportError(
                f"{option}: there is no module {name!r}, neither in this folder nor installed"
                f"{near and f'; {near}'}"
            ) from error
        raise ImportError(f"{option}: {name}: {_in_words(error)}") from error
    except Exception as error:
        raise ValueError(f"{option}: {name} cannot be imported: {_in_words(error)}") from error


def _in_words(error: Exception) -> str:
    """Write an error with the innermost line of the user's own code that led to it."""
    here = str(Path.cwd())
    lines = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.startswith(here) and "site-packages" not in frame.filename
    ]
    where = f" ({Path(lines[-1].filename).name}, line {lines[-1].lineno})" if lines else ""
    return f"{type(error).__name__}: {error}{where}"
