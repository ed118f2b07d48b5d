"""How long a run is."""

from __future__ import annotations

from dataclasses import dataclass

from ppl_fe.arguments import require_integer


@dataclass(frozen=True)
class RunLength:
    """How long to run: S kept draws of `thinning` steps each, after `warmup_steps` steps."""

    num_samples: int = 1000
    warmup_steps: int = 500
    thinning: int = 1

    def __post_init__(self) -> None:
        for name, least in (("num_samples", 1), ("warmup_steps", 0), ("thinning", 1)):
            require_integer(name, getattr(self, name), least)

    @property
    def num_steps(self) -> int:
        """Of a chain, all in all."""
        return self.warmup_steps + self.num_samples * self.thinning
