"""`MALT`: a sampler for exact gradients whose draws have no step-size bias."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ppl_fe.arguments import named_arguments, require_positive
from ppl_fe.inference.dynamics.malt import FRICTION, SCALES, TRAJECTORY_LENGTH
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.program.potential import Potential
from ppl_fe.inference.pyro_kernel import Prepared, PyroKernel
from ppl_fe.inference.run_plan import RunPlan, Target
from ppl_fe.inference.step.batchable import batchable
from ppl_fe.inference.step.builder import Builder
from ppl_fe.inference.step.metric_factor import MOST_DENSE, DenseFactor
from ppl_fe.inference.step.trajectories import Path, Trajectories
from ppl_fe.inference.warmup.about_a_center import start_about_center
from ppl_fe.inference.warmup.newton import Descent, descend
from ppl_fe.inference.warmup.other_modes import OtherModes
from ppl_fe.inference.warmup.scouts import with_other_modes
from ppl_fe.inference.warmup.starts import OVERDISPERSION, spread_out, uniform_positions
from ppl_fe.inference.warmup.windows import Windows
from ppl_fe.ranks import refuse_exact_gradients

EXPECTED_STEPS = 3  # of a trajectory in a metric that fits; "auto" compiling weighs by it
EXPECTED_TRAJECTORIES = 2000  # of a run until its targets


@named_arguments
@dataclass(kw_only=True, eq=False, repr=False)
class MALT(PyroKernel):
    """Sample by Metropolis-adjusted Langevin trajectories (Riou-Durand & Vogrinc 2022).

    In coordinates whitened by the metric, w = F u, a trajectory of L = T/h steps

        v ← e^{−fh} v + √(1 − e^{−2fh}) ξ;  v ← v + (h/2) ∇_u;  u ← u + h v;  v ← v + (h/2) ∇_u

    begins with v ~ N(0, I), and its end is accepted with probability min(1, e^{−Δ}), Δ the sum of
    the energy errors of its steps. The draws are of p *exactly*, at every step size: a step too
    long costs acceptances and no truth. Of ten trajectories one has an eighth of the step, for what
    is narrow, and one eight times the step, for what is far; about a centre, where neither is, all
    are alike. So it needs exact gradients; plates that subsample are taken whole. `fe.sample` takes
    this sampler where a program is given without one.

    Chains start about the point of largest posterior mass that damped Newton steps find from
    uniform starts (up to 200 parameters), and warm-up learns a metric from draws and gradients.

    Args:
        model: a Pyro program, or None with `potential_fn`.
        step_size: ε = h², a number, or "auto" (default): such that `target_acceptance` is met.
        metric: "auto" (default), learnt in warm-up: dense up to 200 parameters, and diagonal and
            low-rank beyond; or "identity".
        trajectory_length: T = hL, in whitened coordinates, where directions have about unit
            standard deviation. Default 1.7.
        friction: f ≥ 0, in whitened coordinates. Default 1.
        target_acceptance: of the eight trajectories that have the step itself, in (0, 1). Default
            0.8.
        potential_fn: U in place of a program, as in `Kernel`; none by default.

    Raises:
        TypeError: an argument that the sampler does not have, a setting that is no number, or not
            one of `model` and `potential_fn`.
        ValueError: a setting out of range.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> import ppl_fe as fe
        >>> def model():
        ...     pyro.sample("w", dist.Normal(1.0, 2.0))
        >>> draws = fe.sample(fe.MALT(model), num_samples=1000, progress_bar=False)
        >>> bool(abs(draws.posterior["w"].std() - 2.0) < 0.2)
        True
    """

    model: Callable[..., Any] | None = field(default=None, kw_only=False)
    step_size: float | Literal["auto"] = "auto"
    metric: Literal["auto", "identity"] = "auto"
    trajectory_length: float = TRAJECTORY_LENGTH
    friction: float = FRICTION
    target_acceptance: float = 0.8
    potential_fn: Potential | None = None

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        self._take_program()
        if self.step_size != "auto":
            require_positive("step_size", self.step_size)
        if self.metric not in ("auto", "identity"):
            raise ValueError(f"metric must be 'auto' or 'identity', got {self.metric!r}")
        require_positive("trajectory_length", self.trajectory_length)
        if self.friction != 0:
            require_positive("friction", self.friction)
        require_positive("target_acceptance", self.target_acceptance)
        if self.target_acceptance >= 1:
            raise ValueError(f"target_acceptance must be below 1, got {self.target_acceptance}")
        self.clear()

    @property
    def own_statistics(self) -> tuple[str, ...]:
        """The chance with which trajectories were accepted, and whether any was lost."""
        return ("acceptance_rate", "diverging")

    @property
    def settings(self) -> dict[str, Any]:
        """The sampler's name and all its settings, for the attributes of the draws."""
        names = ("step_size", "metric", "trajectory_length", "friction", "target_acceptance")
        shared = {"temperature": 1.0, "gradient": "full_data"}  # as every sampler's record has them
        return {"sampler": "MALT", **{name: getattr(self, name) for name in names}, **shared}

    def prepare(self, target: Target, plan: RunPlan) -> Prepared[Trajectories, Windows]:
        """Make chains on a target, and what warms them up.

        Args:
            target: what is sampled; without a loader.
            plan: how.

        Raises:
            ValueError: a loader's minibatches, whose gradients are not exact; several ranks.

        Example:
            >>> import pyro, pyro.distributions as dist
            >>> import ppl_fe as fe
            >>> from ppl_fe.inference.program.density import Density
            >>> from ppl_fe.inference.run_plan import RunLength
            >>> def model():
            ...     pyro.sample("w", dist.Normal(0.0, 1.0))
            >>> plan = RunPlan(RunLength(10), num_chains=2, compile="eager")
            >>> chains, _ = fe.MALT(model).prepare(Target(Density(model)), plan)
            >>> chains.position.shape
            torch.Size([2, 1])
        """
        refuse_exact_gradients()
        if target.source is not None:
            raise ValueError(
                "MALT needs exact gradients, and a DataLoader gives minibatches: give the data as "
                "tensors, or take fe.BAOAB"
            )
        given = target.start if target.center is None else target.center
        position = given
        if position is None:
            position = uniform_positions(target.density, plan.num_chains, plan.seed)
        density = batchable(target.density, position)
        length = plan.length
        trajectories = length.num_steps if plan.until is None else EXPECTED_TRAJECTORIES
        # About a centre γ holds the chains: there are no necks and no tails.
        is_local = target.center is not None or target.least_curvature is not None
        scales = (1.0,) if is_local else SCALES
        chains = Trajectories(
            density,
            position,
            path=Path(self.friction, self.trajectory_length, scales),
            seed=plan.seed,
            builder=Builder(
                plan.compile if density.way.traceable else "eager",
                EXPECTED_STEPS * trajectories,
                target.steps,
            ),
            num_groups=target.num_groups,
            blocks=target.blocks,
        )
        start: Callable[[], OtherModes | None] | None = None
        if self.metric == "auto" and target.center is not None:
            start = partial(start_about_center, chains, target.least_curvature or 1.0, plan.seed)
        elif self.metric == "auto" and given is None and density.num_parameters <= MOST_DENSE:
            start = partial(_descend_and_start, chains, density, plan.seed)
        windows = Windows(
            chains,
            start=start,
            target_acceptance=self.target_acceptance,
            step_size=None if self.step_size == "auto" else float(self.step_size),
            learns_metric=self.metric == "auto",
            of_loss=plan.until is not None and plan.until.loss_offsets is not None,
            num_trajectories=None if plan.until is not None else length.warmup_steps,
        )
        return Prepared(chains, windows)


def _descend_and_start(chains: Trajectories, density: Density, seed: int) -> OtherModes | None:
    """Start about the modes that descents from the chains' positions find, if any arrives."""
    found = descend(density, chains.position)
    if found is None:
        return None
    found = with_other_modes(density, found.with_lost_at_the_best(), seed)
    _start_about(chains, found, seed)
    return OtherModes.of(found)


def _start_about(chains: Trajectories, found: Descent, seed: int) -> None:
    """Spread the chains about what each descent found, in the metric of the one of most mass."""
    center, factor = (values.to(chains.position) for values in found[:2])
    chains.factor = DenseFactor(factor[found.mass.argmax()])
    generator = torch.Generator(center.device).manual_seed(seed)
    z = OVERDISPERSION * torch.randn(
        center.shape, generator=generator, dtype=center.dtype, device=center.device
    )

    def log_density(position: Tensor) -> Tensor:
        return chains.evaluate(position).log_density

    displacement = (factor @ z[..., None])[..., 0]
    chains.start_at(spread_out(center, displacement, 0.5 * z.square().sum(-1), log_density))
