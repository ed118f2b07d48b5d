"""A sampler as a Pyro kernel: density × gradient estimator × dynamics × step size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, Literal

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from ppl_fe.inference.adaptation import Adaptation, Tuning
from ppl_fe.inference.chains import Chains
from ppl_fe.inference.density import Density
from ppl_fe.inference.dynamics import Dynamics
from ppl_fe.inference.gradients import ESTIMATORS, Estimator
from ppl_fe.inference.initial import uniform_positions
from ppl_fe.inference.schedules import Constant

StepSize = float | Literal["auto"] | Callable[[int], float]


class Kernel(MCMCKernel):
    """A stochastic-gradient sampler for any Pyro program.

    It runs inside `pyro.infer.MCMC` (one chain a process, as every Pyro kernel) and inside
    `fe.sample` (all chains in one vectorised, compiled step). A new sampler is a subclass that
    names its `dynamics`.

    Args:
        model: a Pyro program. Plates with `subsample_size` make the gradient a minibatch
            estimate with Pyro's own N/B scale; without them it is exact.
        step_size: ε of the project's convention, w + (ε/2)∇log p + √(εT)ξ; a number, "auto"
            (chosen during warm-up from the curvature met and the gradient noise), or a schedule
            k -> ε_k.
        temperature: T ≥ 0; the target is p^{1/T}. T = 0 descends the gradient without noise, and
            wants every setting as a number.
        gradient: "minibatch" as the program's plates say, or "full_data".
        tolerance: with step_size="auto", the largest excess of the effective temperature over T
            predicted along the stiffest direction; 0.05 is a bias of 5 % in that variance.

    Raises:
        ValueError: a step size, tolerance or hyperparameter that is not positive, a negative
            temperature, or "auto" at temperature 0.
    """

    dynamics: Dynamics

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        step_size: StepSize = "auto",
        temperature: float = 1.0,
        gradient: Literal["minibatch", "full_data"] = "minibatch",
        tolerance: float = 0.05,
        **hyperparameters: float | Literal["auto"],
    ) -> None:
        if gradient not in ESTIMATORS:
            raise ValueError(f"gradient must be one of {sorted(ESTIMATORS)}, got {gradient!r}")
        unknown = set(hyperparameters) - set(self.dynamics.hyperparameters)
        if unknown:
            raise TypeError(f"{type(self).__name__} has no argument {sorted(unknown)}")
        for name, value in [
            ("step_size", step_size),
            ("tolerance", tolerance),
            *hyperparameters.items(),
        ]:
            _require_positive(name, value)
        if temperature != 0:
            _require_positive("temperature", temperature)
        self.model = model
        self.step_size, self.temperature, self.tolerance = step_size, temperature, tolerance
        self.gradient = gradient
        self.hyperparameters = {**self.dynamics.hyperparameters, **hyperparameters}
        automatic = self.tuning().automatic
        if temperature == 0 and automatic:
            raise ValueError(
                f"temperature=0 leaves nothing to weigh an automatic {' or '.join(automatic)} "
                "against; give a number"
            )
        self.clear()

    def clear(self) -> None:
        """Forget the chain of `pyro.infer.MCMC`; `fe.sample` keeps none here."""
        self._chains: Chains | None = None
        self._initial: dict[str, Tensor] | None = None
        self.transforms: dict[str, Any] = {}

    def tuning(self) -> Tuning:
        """What is left to the warm-up."""
        named = {"step_size": self.step_size, **self.hyperparameters}
        automatic = tuple(name for name, value in named.items() if value == "auto")
        exact = self.gradient == "full_data"
        return Tuning(self.dynamics, self.schedule(), automatic, self.tolerance, exact)

    def schedule(self) -> Callable[[int], float] | None:
        """k -> ε_k, or None where the step size is automatic."""
        if self.step_size == "auto":
            return None
        return self.step_size if callable(self.step_size) else Constant(float(self.step_size))

    def initial_settings(self, density: Density, num_chains: int) -> dict[str, Tensor]:
        """step_size, temperature and the sampler's own, (C, 1) each; "auto" starts small."""

        def column(value: float) -> Tensor:
            return torch.full((num_chains, 1), value, dtype=density.dtype, device=density.device)

        schedule = self.schedule()
        own = {
            name: column(self.dynamics.hyperparameters[name] if value == "auto" else float(value))
            for name, value in self.hyperparameters.items()
        }
        first = 1e-8 if schedule is None else schedule(0)
        return {"step_size": column(first), "temperature": column(self.temperature), **own}

    def estimator(self, density: Density) -> Estimator:
        """The gradient estimator asked for."""
        return ESTIMATORS[self.gradient](density)

    def describe(self) -> dict[str, Any]:
        """The kernel's own settings, for the attributes of the draws."""
        step = (
            self.step_size
            if isinstance(self.step_size, float | int | str)
            else repr(self.step_size)
        )
        return {
            "sampler": type(self).__name__,
            "step_size": step,
            "temperature": self.temperature,
            "gradient": self.gradient,
            "tolerance": self.tolerance,
            **self.hyperparameters,
        }

    # --- pyro.infer.mcmc.MCMCKernel: one chain, one step a call ---------------------------------

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Called by `pyro.infer.MCMC` with the program's arguments."""
        density = Density(self.model, args, kwargs)
        self.transforms = density.transforms
        seed = int(torch.randint(2**31, ()))  # follows pyro.set_rng_seed
        if self._initial is None:
            position = uniform_positions(density, 1, seed)
        else:
            position = density.join({k: v[None] for k, v in self._initial.items()})
        self._chains = Chains(
            density,
            self.dynamics,
            self.estimator(density),
            position,
            self.initial_settings(density, 1),
            seed=seed,
            num_steps=2 * warmup_steps,
            compile="traced",
        )
        self._adaptation = Adaptation(self.tuning(), self._chains, warmup_steps)

    @property
    def initial_params(self) -> dict[str, Tensor]:
        """Unconstrained values of every latent site, where the chain starts."""
        if self._chains is None:
            return self._initial or {}
        return self._chains.density.split(self._chains.state.position[0])

    @initial_params.setter
    def initial_params(self, params: Mapping[str, Tensor]) -> None:
        # MCMC sets this before it calls `setup`, so it is kept until then.
        self._initial = dict(params)

    def sample(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One step from `params` (unconstrained) to the next."""
        if self._chains is None:
            raise RuntimeError("call setup() first, or run the kernel through MCMC or fe.sample")
        chains = self._chains
        position = chains.density.join({name: value[None] for name, value in params.items()})
        if not torch.equal(position, chains.state.position):
            chains.state = chains.state._replace(position=position)
        self._adaptation.before_step()
        statistics = chains.advance()
        self._statistics = statistics
        if not torch.isfinite(statistics.log_density).all():
            raise FloatingPointError(
                f"the chain became non-finite at step size "
                f"{chains.settings['step_size'].item():.3g}; use a smaller one or 'auto'"
            )
        return chains.density.split(chains.state.position[0])

    def logging(self) -> dict[str, str]:
        """What the progress bar of `pyro.infer.MCMC` shows."""
        assert self._chains is not None
        return {
            "step size": f"{self._chains.settings['step_size'].item():.2e}",
            "log density": f"{self._statistics.log_density.item():.4g}",
        }

    def diagnostics(self) -> dict[str, Any]:
        """The step size the run ended with."""
        assert self._chains is not None
        return {"step_size": self._chains.settings["step_size"].item()}


def _require_positive(name: str, value: Any) -> None:
    if callable(value) or value == "auto":
        return
    if isinstance(value, bool) or not isinstance(value, float | int):
        raise TypeError(f"{name} must be a positive number, got {value!r}")
    if not (isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive number, got {value}")
