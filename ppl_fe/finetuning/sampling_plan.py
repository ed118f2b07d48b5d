"""How the chains behind a selection run: the settings of a rule that samples, resolved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ppl_fe.inference.run_plan import RunLength


@dataclass(frozen=True, kw_only=True)
class SamplingPlan(RunLength):
    """Lengths (`num_samples`, `warmup_steps`, `thinning`) and settings of stage 1.

    Attributes:
        scale: "drawn", λ from its conditional at every kept draw; "expected", E[λ | Δ] instead.
        num_chains: C, run one after another.
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
    step_size: float | Literal["auto"]
    data_size: float
    batch_size: int
    seed: int
    errors: bool
    top: int | None = None
    head_precision: float = 1.0
    groups: Literal["layer", "row"] | None = None

    @property
    def remedy(self) -> str:
        """Advise, in words, how chains that disagree may be made to agree."""
        return (
            f"raise warmup_steps and num_samples above {self.warmup_steps} + {self.num_samples} x "
            f"{self.thinning} steps, or num_chains above {self.num_chains}"
        )
