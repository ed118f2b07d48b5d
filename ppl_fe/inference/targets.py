"""What a run must reach to be an answer."""

from __future__ import annotations

from dataclasses import dataclass

from ppl_fe.arguments import require_integer, require_positive

# Vehtari et al. (2021): from an ESS of 400 on R-hat and error bars are themselves reliable.
R_HAT_LIMIT, ESS_LIMIT = 1.01, 400.0
MAX_STEPS = 50_000
# Relative standard error of a standard deviation, and of λ̂: a heavy tail needs more draws than an
# ESS of 400 says, and gets up to eight times as many; a small λ̂ up to four times.
ERROR_LIMIT = 0.02


@dataclass(frozen=True)
class Targets:
    """Say when a run may stop.

    Args:
        ess: bulk and tail effective sample size of every named scalar, 400 by default.
        r_hat: their rank-normalised split R-hat, 1.01 by default.
        max_steps: gradients a chain in all, 50,000 by default; a run that would not be done by then
            stops as soon as that is clear.
        max_seconds: of warm-up and draws, none by default. With it equal seeds no longer give equal
            draws.
        loss_offsets: L_n(w*) of each group of chains, where the run is for an estimate of the loss:
            then the loss alone is judged, with the error of its mean's distance from there. None by
            default.
        error: relative standard error of a standard deviation, or of λ̂, above which a run that has
            met the other targets goes on, up to eight times as long (λ̂: four). 0.02 by default.

    Raises:
        TypeError, ValueError: no positive number, or an R-hat of 1 and below.
    """

    ess: float = ESS_LIMIT
    r_hat: float = R_HAT_LIMIT
    max_steps: int = MAX_STEPS
    max_seconds: float | None = None
    loss_offsets: tuple[float, ...] | None = None
    error: float = ERROR_LIMIT

    def __post_init__(self) -> None:
        require_positive("target_ess", self.ess)
        require_positive("target_r_hat", self.r_hat)
        if self.r_hat <= 1:
            raise ValueError(f"target_r_hat must be above 1, got {self.r_hat}")
        require_integer("max_steps", self.max_steps, 1)
        if self.max_seconds is not None:
            require_positive("max_seconds", self.max_seconds)
