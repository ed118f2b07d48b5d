"""MODULE:FACTORY on the command line: networks and data come from the user's own code."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from ppl_fe.arguments import did_you_mean


def load_factory(option: str, text: str) -> Any:
    """Call `module:factory`, found on the path or in the current folder.

    Raises:
        ValueError: not of that form, or no such attribute.
        ImportError: the module cannot be imported.
    """
    module_name, _, name = text.partition(":")
    if not module_name or not name:
        raise ValueError(f"{option} must be MODULE:FACTORY, got {text!r}")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = importlib.import_module(module_name)
    if not hasattr(module, name):
        public = [own for own in vars(module) if not own.startswith("_")]
        near = did_you_mean(name, public)
        raise ValueError(f"{option}: module {module_name!r} has no {name!r}{near and f'; {near}'}")
    return getattr(module, name)()
