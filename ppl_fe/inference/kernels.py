"""A sampler as a Pyro kernel: density × gradient estimator × dynamics × step size × metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from math import inf
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ppl_fe.arguments import named_arguments, require_integer, require_positive
from ppl_fe.inference.dynamics import Dynamics, Measured, Preconditioned, WithMomentum
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.program.potential import (
    Potential,
)
from ppl_fe.inference.pyro_kernel import Prepared, PyroKernel
from ppl_fe.inference.run_plan import RunPlan, Target
from ppl_fe.inference.schedules import Constant
from ppl_fe.inference.step.batchable import batchable
from ppl_fe.inference.step.builder import Builder
from ppl_fe.inference.step.chains import Chains, Sampler, Start
from ppl_fe.inference.step.dense_metric import MOST_PARAMETERS, at_the_mode, unit_map
from ppl_fe.inference.step.gradients import ESTIMATORS, Estimator, accumulated, shared
from ppl_fe.inference.step.metric_factor import MOST_DENSE
from ppl_fe.inference.step.random_stream import ORDERS, Batches, Order, RandomStream
from ppl_fe.inference.warmup.gradient_choice import control_variates_pay
from ppl_fe.inference.warmup.many_data import are_many, at_the_mode_of_many
from ppl_fe.inference.warmup.starts import about_modes, about_the_mode, uniform_positions
from ppl_fe.inference.warmup.step_size import Adaptation, Tuning
from ppl_fe.ranks import are_several, ranks, refuse_exact_gradients, share_of

StepSize = float | Literal["auto"] | Callable[[int], float]
METRICS = ("auto", "identity", "dense")
# A Hessian on all the data holds so many values at once, for each of its rows.
MOST_HESSIAN_VALUES = 10**7


@named_arguments
@dataclass(kw_only=True, eq=False, repr=False)
class Kernel(PyroKernel):
    """Hold a stochastic-gradient sampler's settings for a Pyro program.

    A kernel runs inside `pyro.infer.MCMC` (one chain a process, as every Pyro kernel) and inside
    `fe.sample` (all chains in one vectorised, compiled step). This class is the base of the family:
    a new sampler is a subclass that names its `dynamics`, and a dataclass where these have
    hyperparameters, one field each.

    Args:
        model: a Pyro program, or None with `potential_fn`. Plates with `subsample_size` make the
            gradient a minibatch estimate with Pyro's own N/B scale; without them it is exact.
        step_size: ε in w + (ε/2)∇log p + √(εT)ξ: a number, a schedule k -> ε_k (`fe.schedules`), or
            "auto" (default), chosen during warm-up from the curvature and the gradient noise met.
        temperature: T ≥ 0, 1 by default; the target is p^{1/T}. T = 0 descends the gradient without
            noise, and needs every setting as a number.
        gradient: "minibatch" (default), as the program's plates say; "full_data", on all the data
            in every step; "control_variate", the minibatch's difference to the same minibatch
            at an anchor, where the gradient on all the data is known; or "auto", the one of
            "minibatch" and "control_variate" that is predicted to need fewer gradients, by the
            noise measured at the starts. The anchor is w* for the
            estimators of the free energy, otherwise the mode that the chain started about, or with
            starts given by hand a mean of warm-up draws.
        minibatches: "replacement" (default) draws every index independently; "epoch" goes through
            all the data in a new order each time, and a chain's errors nearly cancel over an epoch.
        micro_batches: K ≥ 1 minibatches, 1 by default, whose gradients are averaged before each
            step, in the memory of one.
        metric: "identity"; "dense", for up to a thousand parameters: the chains live in coordinates
            whitened by the Hessian at a mode and then by the covariance of warm-up draws, and
            settings and curvatures reported are those in these coordinates; or "auto" (default):
            dense where a run goes on until its targets with a step that is chosen, for up to 200
            parameters and data in memory; otherwise identity.
        tolerance: with step_size="auto", the largest excess of the effective temperature over T
            that may be predicted along the stiffest direction; 0.05 (default) is a bias of 5 % in
            that variance.
        potential_fn: U in place of a program, as Pyro's own kernels take it: a function of site ->
            unconstrained value, with p ∝ exp(−U); none by default. The run needs `initial_params`.

    Raises:
        TypeError: an argument that the sampler does not have, a setting that is no number, or not
            one of `model` and `potential_fn`.
        ValueError: a step size, tolerance or hyperparameter that is not positive, a negative
            temperature, an unknown choice, or "auto" at temperature 0.

    Example:
        >>> import ppl_fe as fe
        >>> def model(): ...
        >>> fe.SGHMC(model, step_size=0.1, friction=0.5).settings["friction"]
        0.5
    """

    dynamics: ClassVar[Dynamics]

    model: Callable[..., Any] | None = field(default=None, kw_only=False)
    step_size: StepSize = "auto"
    temperature: float = 1.0
    gradient: Literal["auto", "minibatch", "full_data", "control_variate"] = "minibatch"
    minibatches: Order = "replacement"
    micro_batches: int = 1
    metric: Literal["auto", "identity", "dense"] = "auto"
    tolerance: float = 0.05
    potential_fn: Potential | None = None

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        self._take_program()
        for name, choice, known in [
            ("gradient", self.gradient, ("auto", *ESTIMATORS)),
            ("minibatches", self.minibatches, ORDERS),
            ("metric", self.metric, METRICS),
        ]:
            if choice not in known:
                raise ValueError(f"{name} must be one of {known}, got {choice!r}")
        require_integer("micro_batches", self.micro_batches, 1)
        if self.micro_batches > 1 and self.gradient == "full_data":
            raise ValueError("micro_batches must be 1 with gradient='full_data'")
        named = {"step_size": self.step_size, "tolerance": self.tolerance, **self.hyperparameters}
        if self.temperature != 0:
            named["temperature"] = self.temperature
        for name, value in named.items():
            if not callable(value) and value != "auto":
                require_positive(name, value)
        automatic = self._tuning().automatic
        if self.temperature == 0 and automatic:
            raise ValueError(
                f"temperature=0 leaves nothing to weigh an automatic {' or '.join(automatic)} "
                "against; give a number"
            )
        self.clear()

    @property
    def hyperparameters(self) -> dict[str, float | Literal["auto"]]:
        """The dynamics' own settings: the fields of their names, or the dynamics' defaults."""
        known = self.dynamics.hyperparameters
        return {name: getattr(self, name, default) for name, default in known.items()}

    @property
    def settings(self) -> dict[str, Any]:
        """The sampler's name and all its settings, for the attributes of the draws."""
        shared = [
            entry.name for entry in fields(Kernel) if entry.name not in ("model", "potential_fn")
        ]
        values = {name: getattr(self, name) for name in shared} | self.hyperparameters
        if callable(self.step_size):
            values["step_size"] = repr(self.step_size)
        return {"sampler": type(self).__name__, **values}

    def prepare(self, target: Target, plan: RunPlan) -> Prepared[Chains, Adaptation]:
        """Make chains of this sampler on a target, and what tunes them while they warm up.

        The chains start where the target says, or else uniform on (−2, 2) of unconstrained space,
        and with a dense metric or minibatches about the mode found from there.

        Args:
            target: what is sampled.
            plan: how; where it is saved to, and how it is shown, play no part here.

        Returns:
            The chains, and their adaptation, which is to be called before every step.

        Raises:
            ValueError: a program or data that these settings do not fit.

        Example:
            >>> import pyro, pyro.distributions as dist
            >>> import ppl_fe as fe
            >>> from ppl_fe.inference.run_plan import RunLength
            >>> def model():
            ...     pyro.sample("w", dist.Normal(0.0, 1.0))
            >>> plan = RunPlan(RunLength(10), num_chains=2, compile="eager")
            >>> chains, _ = fe.SGLD(model, step_size=0.1).prepare(Target(Density(model)), plan)
            >>> chains.position.shape
            torch.Size([2, 1])
        """
        loads = target.source is not None
        if loads and (self.gradient not in ("minibatch", "auto") or self.micro_batches > 1):
            raise ValueError(
                f"gradient={self.gradient!r} and micro_batches={self.micro_batches} draw from "
                "plates that subsample; a DataLoader draws its own minibatches, so give tensors "
                "instead"
            )
        self._refuse_what_ranks_cannot_share(target)
        num_chains, seed = plan.num_chains, plan.seed
        given = target.start if target.center is None else target.center
        position = given
        if position is None:
            position = uniform_positions(target.density, num_chains, seed)
        density = batchable(target.density, position)
        stream = RandomStream(
            density,
            num_chains,
            seed,
            order=self.minibatches,
            micro_batches=self.micro_batches * ranks().total,
            batches=(
                None if target.source is None else Batches(target.source, density, num_chains, seed)
            ),
        )
        start = self._start(
            density, position, given is not None, seed, self._is_dense(density, target, plan)
        )
        chosen = self._first_choice(density)

        def made(gradient: str) -> Chains:
            settings = self._settings(density, num_chains)
            return Chains(
                density,
                Sampler(self.dynamics, self._estimator(density, gradient), settings, gradient),
                start if gradient == "control_variate" else start._replace(anchor=None),
                stream,
                builder=Builder(
                    plan.compile if density.way.traceable else "eager",
                    plan.length.num_steps,
                    target.steps,
                ),
                blocks=target.blocks,
            )

        chains = made(chosen)
        measurable = chosen == "control_variate" and start.near_mode
        if (
            self.gradient == "auto"
            and measurable
            and not control_variates_pay(chains, self._tuning())
        ):
            chains = made("minibatch")
        return Prepared(chains, self.adaptation(chains, target, plan.length.warmup_steps))

    def adaptation(self, chains: Chains, target: Target, warmup_steps: int) -> Adaptation:
        """Make what tunes chains of this sampler over a warm-up of so many steps."""
        return Adaptation(
            self._tuning(),
            chains,
            warmup_steps,
            least_curvature=target.least_curvature,
            num_groups=target.num_groups,
        )

    @property
    def own_statistics(self) -> tuple[str, ...]:
        """The kinetic temperature, where there are momenta."""
        return ("kinetic_temperature",) * isinstance(self.dynamics, WithMomentum)

    def _is_dense(self, density: Density, target: Target, plan: RunPlan) -> bool:
        """Say whether the chains are to live in whitened coordinates."""
        if self.metric != "auto":
            return self.metric == "dense"
        chosen = plan.until is not None and self.step_size == "auto"
        plain = target.center is None and target.source is None
        size = density.num_parameters
        small = size <= MOST_DENSE and (
            are_many(density) or size * density.num_data <= MOST_HESSIAN_VALUES
        )
        return chosen and plain and small and not isinstance(self.dynamics, Preconditioned)

    def _start(
        self, density: Density, position: Tensor, given: bool, seed: int, dense: bool
    ) -> Start:
        """Start at the positions (C, D), or where none were given about the modes found there."""
        with_anchor = self._first_choice(density) == "control_variate" and bool(density.subsamples)
        metric = None
        if dense and are_many(density):
            metric = at_the_mode_of_many(density, position, seed)
        elif dense:
            metric = at_the_mode(density, position)
        if metric is not None:
            anchor = metric.origin if with_anchor else None
            if given:
                return Start(position, anchor, metric=metric)
            return Start(about_the_mode(density, metric, seed), anchor, True, metric)
        if dense:  # of a posterior without a mode of its size
            metric = unit_map(position)
        if given or not density.subsamples or self.gradient == "full_data":
            return Start(position, position if with_anchor else None, metric=metric)
        starts, modes = about_modes(density, position, seed)
        # One that found no mode still has to descend, and to learn its anchor on the way.
        near_mode = bool((starts != modes).any(-1).all())
        return Start(starts, modes if with_anchor else None, near_mode, metric)

    def _tuning(self) -> Tuning:
        """Collect what is left to the warm-up."""
        named = {"step_size": self.step_size, **self.hyperparameters}
        automatic = tuple(name for name, value in named.items() if value == "auto")
        exact = self.gradient == "full_data"
        return Tuning(self.dynamics, self._schedule(), automatic, self.tolerance, exact, self._tune)

    def _tune(
        self, found: Measured, tolerance: float, step_size: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Choose what is automatic by what warm-up has measured, as the dynamics do."""
        return self.dynamics.tune(found, tolerance, step_size)

    def _schedule(self) -> Callable[[int], float] | None:
        """Give k -> ε_k, or None where the step size is automatic."""
        if self.step_size == "auto":
            return None
        return self.step_size if callable(self.step_size) else Constant(float(self.step_size))

    def _settings(self, density: Density, num_chains: int) -> dict[str, Tensor]:
        """Make step_size, temperature and the sampler's own, (C, 1) each; "auto" starts small."""

        def column(value: float) -> Tensor:
            return torch.full((num_chains, 1), value, dtype=density.dtype, device=density.device)

        schedule = self._schedule()
        own = {
            name: column(self.dynamics.hyperparameters[name] if value == "auto" else float(value))
            for name, value in self.hyperparameters.items()
        }
        first = 1e-8 if schedule is None else schedule(0)
        return {"step_size": column(first), "temperature": column(self.temperature), **own}

    def _first_choice(self, density: Density) -> str:
        """Name the gradient to begin with: of an automatic one control variates, if they may be."""
        if self.gradient != "auto":
            return self.gradient
        may = bool(density.subsamples) and density.num_parameters <= MOST_PARAMETERS
        return "control_variate" if may else "minibatch"

    def _estimator(self, density: Density, gradient: str) -> Estimator:
        plain = ESTIMATORS[gradient](density)
        own = plain if self.micro_batches == 1 else accumulated(plain, self.micro_batches)
        return shared(own)

    def _refuse_what_ranks_cannot_share(self, target: Target) -> None:
        """Refuse gradients of which several ranks could not take a part each.

        Raises:
            ValueError: exact gradients, or a loader's minibatches of no multiple of the ranks.
        """
        if not are_several():
            return
        if target.source is not None:
            share_of(target.source.batch_size, inf)
        elif self.gradient == "full_data" or not target.density.subsamples:
            refuse_exact_gradients()
