"""How the chains of stage 1 run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

DEFAULT_BATCH = 32


class Usual(NamedTuple):
    """What `select_parameters` does where nothing is asked for; batch size None: all the data."""

    batch_size: int | None
    warmup_steps: int
    thinning: int


USUAL = Usual(DEFAULT_BATCH, 500, 10)
# Minibatch noise bears on every site of another prior: at 32 of 300 rows the step was 10⁴ times
# smaller than with all of them, and R-hat 700. At these lengths it is 1.03 there under a logistic
# prior and 1.08 under the horseshoe, at most.
OTHER_PRIOR = Usual(None, 2000, 50)


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
