"""A script run as `python script.py ...` would, in this process."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest


def run_script(path: Path, *arguments: str) -> int:
    """Give the exit status of a script that ends by `sys.exit`; its imports are paid already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(path), *arguments])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(path), run_name="__main__")
    return int(left.value.code or 0)
