"""Two chains on a Gaussian, twelve draws each, stored where a path is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist

import ppl_fe as fe


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
