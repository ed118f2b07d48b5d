"""Step-size schedules: functions from the step's number k = 0, 1, ... to ε_k."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, cos, pi

from ppl_fe.arguments import named_arguments, require_positive


@named_arguments
@dataclass(frozen=True)
class Constant:
    """Keep the step size: ε_k = step_size.

    Args:
        step_size: ε > 0.

    Example:
        >>> Constant(1e-3)(10)
        0.001
    """

    step_size: float

    def __post_init__(self) -> None:
        require_positive("step_size", self.step_size)

    def __call__(self, step: int) -> float:
        return self.step_size


@named_arguments
@dataclass(frozen=True)
class Polynomial:
    """Shrink the step size: ε_k = step_size · (1 + k/offset)^{−power} (Welling & Teh 2011).

    With 1/2 < power ≤ 1 the steps sum to infinity and their squares do not, so that the bias
    vanishes; every draw then deserves the weight ε_k, which plain averages do not give it.

    Args:
        step_size: ε_0 > 0.
        offset: steps after which the step size has shrunk by 2^{−power}, 1000 by default.
        power: of the decay, 0.55 by default.

    Example:
        >>> schedule = Polynomial(1e-3, offset=100, power=0.55)
        >>> schedule(0), round(schedule(900), 6)
        (0.001, 0.000282)
    """

    step_size: float
    offset: float = 1000.0
    power: float = 0.55

    def __post_init__(self) -> None:
        for name in ("step_size", "offset", "power"):
            require_positive(name, getattr(self, name))

    def __call__(self, step: int) -> float:
        return self.step_size * float((1 + step / self.offset) ** -self.power)


@named_arguments
@dataclass(frozen=True)
class Cyclical:
    """Repeat cycles of large and then small steps (Zhang et al. 2020, arXiv:1902.03932).

        ε_k = (ε₀/2) (cos(π · mod(k, L)/L) + 1),        L = ⌈K/M⌉

    In the first part of a cycle the temperature is zero: the chain descends to another mode, and
    none of its steps is kept. The rest of the cycle samples.

    Args:
        step_size: ε₀ > 0.
        num_steps: K, steps of all cycles, warm-up included.
        num_cycles: M, 4 by default.
        exploration: the share of a cycle that descends, in [0, 1); 0 by default.

    Example:
        >>> schedule = Cyclical(1e-3, num_steps=100, num_cycles=2, exploration=0.4)
        >>> schedule(0), schedule(50), round(schedule(25), 6)
        (0.001, 0.001, 0.0005)
        >>> [schedule.explores(step) for step in (19, 20, 49, 50)]
        [True, False, False, True]
    """

    step_size: float
    num_steps: int
    num_cycles: int = 4
    exploration: float = 0.0

    def __post_init__(self) -> None:
        for name in ("step_size", "num_steps", "num_cycles"):
            require_positive(name, getattr(self, name))
        if not 0 <= self.exploration < 1:
            raise ValueError(f"exploration must lie in [0, 1), got {self.exploration}")

    @property
    def cycle_steps(self) -> int:
        """Steps of a cycle, L."""
        return ceil(self.num_steps / self.num_cycles)

    def __call__(self, step: int) -> float:
        length = self.cycle_steps
        return 0.5 * self.step_size * (cos(pi * (step % length) / length) + 1)

    def explores(self, step: int) -> bool:
        """Say whether this step belongs to the exploration of its cycle."""
        return step % self.cycle_steps < self.exploration * self.cycle_steps
