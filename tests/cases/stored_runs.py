"""Two chains on a Gaussian, twelve draws each, stored where a path is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest

import ppl_fe as fe
from ppl_fe.inference.step.chains import Chains
from ppl_fe.inference.step.step_function import Statistics
from ppl_fe.inference.step.trajectories import Trajectories


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


def counted(call: Callable[[], Any]) -> tuple[Any, int]:
    """Make a call, and count the steps that chains take in it."""
    advance, taken = Chains.advance, 0

    def counting(chains: Chains) -> Statistics:
        nonlocal taken
        taken += 1
        return advance(chains)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Chains, "advance", counting)
        return call(), taken


@contextmanager
def raising_after(steps: int, error: type[BaseException]) -> Iterator[None]:
    """This error comes in place of the next step, of whatever kind of chains."""
    taken = 0

    def raising(advance: Callable[[Any], Statistics]) -> Callable[[Any], Statistics]:
        def advanced(self: Any) -> Statistics:
            nonlocal taken
            taken += 1
            if taken > steps:
                raise error
            return advance(self)

        return advanced

    with pytest.MonkeyPatch.context() as patch:
        for kind in (Chains, Trajectories):
            patch.setattr(kind, "advance", raising(kind.advance))
        yield


stopping_after = partial(raising_after, error=KeyboardInterrupt)  # as by Ctrl-C


def files(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


class CrashError(BaseException):
    """Stands for a power cut: nothing may catch it."""


@contextmanager
def crashing_after(steps: int) -> Iterator[None]:
    """The run is gone in place of the next step."""
    with raising_after(steps, CrashError), pytest.raises(CrashError):
        yield
