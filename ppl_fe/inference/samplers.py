"""The sampler family: one kernel for each file in `dynamics/`.

Each has `Kernel`'s arguments and those that its own docstring lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from ppl_fe.arguments import named_arguments, require_positive
from ppl_fe.inference.dynamics import Dynamics, Measured, baoab, psgld, sghmc, sgld, sgnht
from ppl_fe.inference.kernels import Kernel


@named_arguments
@dataclass(kw_only=True, eq=False, repr=False)
class SGLD(Kernel):
    """Sample by stochastic gradient Langevin dynamics (Welling & Teh 2011).

        w' = w + (ε/2) ĝ + √(εT) ξ

    Along a direction of curvature a with gradient-noise variance s² the stationary variance is
    (T + εs²/4) / (a(1 − εa/4)), stable iff εa < 4; the target p^{1/T} is reached as ε → 0.
    Arguments as in `Kernel`.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro.infer import MCMC
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> pyro.set_rng_seed(0)
        >>> mcmc = MCMC(SGLD(model, step_size=0.05), 800, 200, disable_progbar=True)
        >>> mcmc.run(torch.ones(9))               # posterior N(0.9, 0.1)
        >>> abs(mcmc.get_samples()["mean"].mean().item() - 0.9) < 0.1
        True
    """

    dynamics: ClassVar[Dynamics] = sgld


@named_arguments
@dataclass(kw_only=True, eq=False, repr=False)
class PSGLD(Kernel):
    """Sample by SGLD in a diagonal metric, as of RMSprop (Li et al. 2016).

        w' = w + (ε/2) G ĝ + √(εTG) ξ,        G = 1/(√(v/mean v) + δ),        v ← ρv + (1 − ρ)ĝ²

    Every chain learns its v in warm-up, and it is frozen afterwards: the draws are exactly SGLD's
    in the coordinates w/√G, with target p^{1/T} as ε → 0 and no correction term missing. Without
    warm-up it is SGLD. An automatic step size is chosen in the metric, and the curvatures reported
    are those in it. Arguments as in `Kernel`, and these.

    Args:
        decay: ρ in (0, 1), 0.99 by default as in the paper: v remembers 1/(1 − ρ) steps.
        damping: δ > 0, 0.01 by default: no coordinate moves more than 1/δ times as fast as one of
            root-mean-square gradient, even if its own gradient has been zero throughout warm-up.

    Raises:
        ValueError: a decay of 1 or more, and as in `Kernel`.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> import ppl_fe as fe
        >>> def model():
        ...     pyro.sample("w", dist.Normal(0.0, torch.tensor([0.1, 1.0])).to_event(1))
        >>> draws = fe.sample(
        ...     fe.PSGLD(model), num_samples=300, warmup_steps=2500, thinning=10,
        ...     progress_bar=False)
        >>> sd = draws.posterior["w"].values.std((0, 1))
        >>> bool(abs(sd[0] / 0.1 - 1) < 0.3 and abs(sd[1] - 1) < 0.3)
        True
    """

    dynamics: ClassVar[Dynamics] = psgld

    decay: float = 0.99
    damping: float = 0.01

    def __post_init__(self) -> None:
        """Refuse a decay that would never take a gradient in."""
        super().__post_init__()
        if self.decay >= 1:
            raise ValueError(
                f"decay must be below 1, or no gradient is ever seen; got {self.decay}"
            )


@named_arguments
@dataclass(kw_only=True, eq=False, repr=False)
class SGHMC(Kernel):
    """Sample by stochastic gradient Hamiltonian Monte Carlo (Chen, Fox & Guestrin 2014).

        p' = (1 − α) p + (√ε/2) ĝ + √(αT) ξ,        w' = w + √ε p'

    The target is p^{1/T} as ε → 0. Full friction, α = 1, is SGLD of the same ε, draw for draw. At
    α = √(2εa_min) slow directions relax in about the square root of SGLD's steps. Gradient noise
    counts 1/α times as much as for SGLD. Arguments as in `Kernel`, and these.

    Args:
        friction: α in (0, 1], the share of the momentum lost in a step, or "auto" (default):
            critical for the slowest direction met in warm-up, and more where gradient noise would
            heat the chain. A step size by hand may go with an automatic friction, not the other way
            round.

    Raises:
        ValueError: a friction above 1, a friction by hand with step_size="auto", and as in
            `Kernel`.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> import ppl_fe as fe
        >>> def model():
        ...     pyro.sample("w", dist.Normal(1.0, 2.0))
        >>> draws = fe.sample(fe.SGHMC(model), num_samples=500, thinning=2, progress_bar=False)
        >>> bool(abs(draws.posterior["w"].std() - 2.0) < 0.3)
        True
    """

    dynamics: ClassVar[Dynamics] = sghmc

    friction: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        """Refuse a friction above 1, and one by hand beside an automatic step."""
        super().__post_init__()
        if self.friction == "auto":
            return
        if self.friction > 1:
            raise ValueError(f"friction must be at most 1, which is SGLD; got {self.friction}")
        if self.step_size == "auto":
            raise ValueError(
                "step_size='auto' chooses the friction along with the step; "
                f"leave friction={self.friction} out, or give step_size as a number"
            )


@named_arguments
@dataclass(kw_only=True, eq=False, repr=False)
class SGNHT(Kernel):
    """Sample by a stochastic gradient Nosé–Hoover thermostat (Ding et al. 2014), split evenly.

    BAOAB with a friction z, one a chain, that follows z' = κ(|p|²/D − T) and so absorbs gradient
    noise of unknown size, as far as it is the same in every direction. The target is p^{1/T} as
    ε → 0, with z around `friction` plus what the noise adds. The reported excess temperature is an
    upper bound: that of one noisy direction among many. `dynamics/sgnht.py` has the equations.
    Arguments as in `Kernel`, and these.

    Args:
        friction: f > 0, the mean of z without gradient noise, or "auto" (default) as for BAOAB.
        coupling: κ > 0, how fast the thermostat answers, 1 in the paper; or "auto" (default):
            f²/(2T), which does not depend on the units of w.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> import ppl_fe as fe
        >>> def model():
        ...     pyro.sample("w", dist.Normal(1.0, 2.0).expand([4]).to_event(1))
        >>> draws = fe.sample(fe.SGNHT(model), num_samples=500, thinning=2, progress_bar=False)
        >>> bool(abs(draws.posterior["w"].std() - 2.0) < 0.3)
        True
    """

    dynamics: ClassVar[Dynamics] = sgnht

    friction: float | Literal["auto"] = "auto"
    coupling: float | Literal["auto"] = "auto"


@named_arguments
@dataclass(kw_only=True, eq=False, repr=False)
class BAOAB(Kernel):
    """Sample by underdamped Langevin dynamics, BAOAB splitting (Leimkuhler & Matthews 2013).

    With h = √ε and friction f a step is

        p ← p + h ĝ;   w ← w + (h/2) p;   p ← e^{−fh} p + √((1 − e^{−2fh}) T) ξ;   w ← w + (h/2) p

    On quadratics with exact gradients the variance of w is exact at every stable step, and slow
    directions relax in about the square root of the steps that SGLD needs; it is stable iff εa < 4,
    as SGLD is. Arguments as in `Kernel`, and this.

    Args:
        friction: f > 0, or "auto" (default): critical for the slowest direction met in warm-up, and
            as much more as keeps the excess temperature of the gradient noise within `tolerance`.
        stiffness: εa of an "auto" step along the stiffest direction met in warm-up, in (0, 4), 0.25
            by default. Quadratics are exact at any; elsewhere a longer step is sooner done and
            biased more, in proportion to it.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> import ppl_fe as fe
        >>> def model():
        ...     pyro.sample("w", dist.Normal(1.0, 2.0))
        >>> draws = fe.sample(fe.BAOAB(model), num_samples=500, progress_bar=False)
        >>> bool(abs(draws.posterior["w"].std() - 2.0) < 0.3)
        True
    """

    dynamics: ClassVar[Dynamics] = baoab

    friction: float | Literal["auto"] = "auto"
    stiffness: float = baoab.STIFFNESS

    def __post_init__(self) -> None:
        """Refuse a step that is unstable along the stiffest direction."""
        super().__post_init__()
        require_positive("stiffness", self.stiffness)
        if self.stiffness >= baoab.UNSTABLE:
            raise ValueError(f"stiffness must be below {baoab.UNSTABLE:g}, got {self.stiffness}")

    @property
    def settings(self) -> dict[str, Any]:
        """The sampler's name and all its settings, for the attributes of the draws."""
        return {**super().settings, "stiffness": self.stiffness}

    def _tune(
        self, found: Measured, tolerance: float, step_size: Tensor | None = None
    ) -> dict[str, Tensor]:
        return baoab.tune(found, tolerance, step_size, self.stiffness)
