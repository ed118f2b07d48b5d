"""Tell a program that a Python loop makes long what its tracing costs, by the line that does it."""

from __future__ import annotations

import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import ppl_fe.models
from ppl_fe.inference.program.density import Density

# Operations of one evaluation, each of which is traced by itself and again for the gradient.
MANY_OPERATIONS = 2000
TRACING_SECONDS = 0.005  # for each of them (benchmarks/cold_start.py)
LOOP_SHARE = 0.25  # of all operations, from which one line of the program is to blame

LIBRARIES = (
    sysconfig.get_path("stdlib"),
    str(Path(torch.__file__).parent.parent),  # where Pyro is, too
    *(str(Path(module.__file__ or "").parent) for module in (ppl_fe, ppl_fe.models)),
)


def warn_of_unrolled_loop(density: Density, position: Tensor) -> None:
    """Warn of a program whose graph would have very many operations, before it is traced.

    They are counted in one evaluation, so that the same program always gets the same answer.

    Args:
        density: of the program.
        position: (D,), where to evaluate it.

    Warns:
        RuntimeWarning: the operations, the line that makes most of them, what tracing costs, and
            what to write in its place.
    """
    operations = _Operations()
    with torch.no_grad(), operations:
        density(position)
    count = operations.lines.total()
    if count < MANY_OPERATIONS:
        return
    (where, most), *_ = operations.lines.most_common(1)
    cause = "a Python loop is unrolled"
    if where and most > LOOP_SHARE * count:
        cause = f"{most:,} of them in {where}: is that in a Python loop? It is unrolled"
    warnings.warn(
        f"one evaluation of the program takes {count:,} operations; {cause}, so that tracing "
        f"takes about {count * TRACING_SECONDS:.0f} s and compiling far longer. Write it with "
        "tensors over all steps at once (torch.cumsum, a matrix product, "
        "torch.linalg.solve_triangular for a recurrence), or pass compile='traced'",
        RuntimeWarning,
        stacklevel=4,
    )


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count operations by the program's own line that they come from; "" where there is none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lines = Counter[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.lines[_line()] += 1
        return func(*args, **(kwargs or {}))


def _line() -> str:
    """Find the innermost line that is the program's own, and not a library's."""
    outermost = warn_of_unrolled_loop.__code__  # above it are the caller's lines
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code is not outermost:
        if not frame.f_code.co_filename.startswith(LIBRARIES):
            return f"line {frame.f_lineno} of {Path(frame.f_code.co_filename).name}"
        frame = frame.f_back
    return ""
