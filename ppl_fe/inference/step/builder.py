"""How the functions of a run are built, and what runs of one program share of that.

A graph holds no values of its inputs. So runs of one program that differ in these alone, such as
those about several checkpoints of one architecture, take the same step, and only the first of them
waits for it to be traced and compiled.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from copy import copy
from typing import NamedTuple

from torch import Tensor

from ppl_fe.inference.step.compile import Built, CompileMode, TensorFunction, build

MEASURING = 150  # gradients by which a warm-up measures curvature, about


class BuiltSteps:
    """Keep what was built for a program, for further runs of it.

    Whoever hands it to several runs answers for their having the same program and sampler, and the
    same values in all that is no input: options, buffers, data that the program reads numbers from.

    Args:
        num_runs: how many there are to be, 1 by default; "auto" weighs the cost of compiling
            against the steps of all of them.

    Example:
        >>> import torch
        >>> steps, example = BuiltSteps(), [torch.ones(2)]
        >>> double = steps.build("double", lambda x: [2 * x], example, "traced", 1)
        >>> double is steps.build("double", lambda x: [2 * x], example, "traced", 1)
        True
    """

    def __init__(self, num_runs: int = 1) -> None:
        self.num_runs = num_runs
        self._program: tuple[Hashable, ...] = ()
        self._built: dict[Hashable, Built] = {}

    def of(self, program: Hashable) -> BuiltSteps:
        """Give the part of one of several programs.

        Args:
            program: all that tells it from the others.
        """
        part = copy(self)
        part._program = (*self._program, program)
        return part

    def for_runs(self, num_runs: int) -> BuiltSteps:
        """Give the same for another number of runs, which share what is built with all others."""
        part = copy(self)
        part.num_runs = num_runs
        return part

    def build(
        self,
        name: str,
        function: TensorFunction,
        example: Sequence[Tensor],
        mode: CompileMode,
        num_calls: int,
        *,
        read_constants: bool = False,
    ) -> Built:
        """Take what was built under a name for such inputs, or else build and keep it.

        Args:
            name: of the function, among those of its run.
            function, example, mode, read_constants: as in `build`.
            num_calls: of one run.
        """
        leaves = ((leaf.shape, leaf.stride(), leaf.dtype, leaf.device) for leaf in example)
        key = (self._program, name, mode, read_constants, *leaves)
        if key not in self._built:
            calls = num_calls * self.num_runs
            self._built[key] = build(function, example, mode, calls, read_constants=read_constants)
        return self._built[key]


class Builder(NamedTuple):
    """How a run has its functions built.

    Attributes:
        mode: as in `build`.
        num_calls: of the step, expected; "auto" weighs the cost of compiling against them.
        steps: what other runs have built, and this one builds for them; by default none.
    """

    mode: CompileMode
    num_calls: int
    steps: BuiltSteps | None = None

    def step(
        self, function: TensorFunction, example: Sequence[Tensor], *, read_constants: bool
    ) -> Built:
        """Build the step; see `build`."""
        return self._own.build(
            "step", function, example, self.mode, self.num_calls, read_constants=read_constants
        )

    def gradient(
        self, function: TensorFunction, example: Sequence[Tensor], *, read_constants: bool
    ) -> Built:
        """Build the gradient alone, compiled where its few calls pay for that; see `build`."""
        mode: CompileMode = "auto" if self.mode == "compiled" else self.mode
        return self._own.build(
            "gradient", function, example, mode, MEASURING, read_constants=read_constants
        )

    @property
    def _own(self) -> BuiltSteps:
        return BuiltSteps() if self.steps is None else self.steps
