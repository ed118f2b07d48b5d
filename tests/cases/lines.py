"""Checkpoints of a linear network that share no lot, and modules that die or take their time."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import ppl_fe as fe

N, D, GAMMA = 300, 16, 10.0
_RNG = np.random.default_rng(7)
X = _RNG.standard_normal((N, D)) * np.linspace(0.3, 1.5, D)
Y = X @ _RNG.standard_normal(D) + _RNG.standard_normal(N)
BEST = np.linalg.lstsq(X, Y, rcond=None)[0]
DATA = torch.tensor(X, dtype=torch.float32), torch.tensor(Y, dtype=torch.float32)
OFF = {"best": 0.0, "near": 0.5, "far": 2.0, "farther": 3.0}  # along the first coordinate


class Line(nn.Module):
    """A line with a buffer: checkpoints whose buffers differ share no lot."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("number", torch.zeros(1))
        self.line = nn.Linear(D, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.line(x)
        return out


class Deadly(Line):
    """A line that ends its process where that is a worker, once if there is a folder."""

    def __init__(self, folder: Path | None) -> None:
        super().__init__()
        self.folder, self.first = folder, os.getpid()

    def forward(self, x: Tensor) -> Tensor:
        if os.getpid() != self.first and float(self.get_buffer("number")) == 2:
            marker = None if self.folder is None else self.folder / "died"
            if marker is None or not marker.exists():
                if marker is not None:
                    marker.touch()
                os._exit(1)
        return super().forward(x)


class Seen(Line):
    """A line that leaves a file for each process that it is in, and takes its time in one."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.first = folder, os.getpid()

    def forward(self, x: Tensor) -> Tensor:
        if os.getpid() != self.first:
            (self.folder / f"{float(self.get_buffer('number')):g} {os.getpid()}").touch()
        if "SLOW" in os.environ:
            time.sleep(0.05)
        return super().forward(x)


def anchor(off: float) -> np.ndarray[Any, Any]:
    return np.asarray(BEST + off * np.eye(D)[0])


def state(off: float, number: float) -> dict[str, Tensor]:
    weight = torch.tensor(anchor(off)[None], dtype=torch.float32)
    return {"line.weight": weight, "number": torch.tensor([number])}


def states(*, together: bool = False) -> dict[str, dict[str, Tensor]]:
    return {
        name: state(off, 0.0 if together else float(place))
        for place, (name, off) in enumerate(OFF.items())
    }


# What a run needs to come to numbers, whatever they are.
SHORT: dict[str, Any] = {
    "kernel": fe.MALT,
    "num_chains": 2,
    "num_samples": 12,
    "warmup_steps": 5,
    "thinning": 1,
    "compile": "traced",
}


def rank(given: Any = None, module: nn.Module | None = None, **options: Any) -> pd.DataFrame:
    return fe.rank_checkpoints(
        states() if given is None else given,
        module or Line(),
        DATA,
        **{
            **SHORT,
            "likelihood": "normal",
            "localization": GAMMA,
            "held_out": DATA,
            "progress_bar": False,
            **options,
        },
    )


def assert_same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert one.attrs == other.attrs
