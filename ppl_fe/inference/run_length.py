"""How long a run is, and the check that numbers of steps, draws and chains are such."""

from __future__ import annotations

from dataclasses import dataclass


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


def require_integer(name: str, value: object, least: int) -> None:
    """Refuse anything but an integer of at least `least`.

    Raises:
        ValueError: as it says.

    Example:
        >>> require_integer("num_steps", 0, 1)
        Traceback (most recent call last):
        ValueError: num_steps must be an integer of at least 1, got 0
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
