"""How the chains of stage 1 run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Plan:
    """Lengths and settings of stage 1.

    Attributes:
        scale: "drawn", λ from its conditional at every kept draw; "expected", E[λ | Δ] instead.
        num_chains, num_samples, warmup_steps, thinning: as in `fe.sample`.
        step_size: ε, or "auto".
        data_size: N̂.
        batch_size: B.
        seed: of everything; chain c has its own stream of it.
        errors: keep what R-hat and MCSE need.
        top: how many of the largest scales of every draw to count, or None.
        head_precision: of the head's prior, in 1/weight².
        groups: what has one scale: a weight (None), a "layer" or a "row".
    """

    scale: Literal["drawn", "expected"]
    num_chains: int
    num_samples: int
    warmup_steps: int
    thinning: int
    step_size: float | Literal["auto"]
    data_size: float
    batch_size: int
    seed: int
    errors: bool
    top: int | None = None
    head_precision: float = 1.0
    groups: Literal["layer", "row"] | None = None

    @property
    def num_steps(self) -> int:
        """Of a chain, warm-up included."""
        return self.warmup_steps + self.num_samples * self.thinning
