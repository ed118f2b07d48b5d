"""Two chains on a Gaussian, twelve draws each, stored where a path is given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest

import ppl_fe as fe
from ppl_fe.inference.step.chains import Chains
from ppl_fe.inference.step.step_function import Statistics


def gaussian(size: int = 2, name: str = "x") -> None:
    pyro.sample(name, dist.Normal(0.0, 1.0).expand([size]).to_event(1))


def run(path: Path | None, kernel: fe.Kernel | None = None, *args: Any, **changed: Any) -> Any:
    options: dict[str, Any] = {
        "num_samples": 12,
        "warmup_steps": 3,
        "num_chains": 2,
        "compile": "eager",
        "progress_bar": False,
        "save_to": path,
    }
    return fe.sample(kernel or fe.SGLD(gaussian, step_size=0.1), *args, **{**options, **changed})


@contextmanager
def stopping_after(steps: int) -> Iterator[None]:
    """What Ctrl-C raises comes in place of the next step."""
    advance, taken = Chains.advance, 0

    def interrupted(self: Chains) -> Statistics:
        nonlocal taken
        taken += 1
        if taken > steps:
            raise KeyboardInterrupt
        return advance(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Chains, "advance", interrupted)
        yield


def files(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


class CrashError(BaseException):
    """Stands for a power cut: nothing may catch it."""


@contextmanager
def crashing_after(steps: int) -> Iterator[None]:
    """The run is gone in place of the next step."""
    advance, taken = Chains.advance, 0

    def crashing(self: Chains) -> Statistics:
        nonlocal taken
        taken += 1
        if taken > steps:
            raise CrashError
        return advance(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Chains, "advance", crashing)
        with pytest.raises(CrashError):
            yield
