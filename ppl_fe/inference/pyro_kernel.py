"""The protocol of `pyro.infer.MCMC`, for any kernel that can prepare chains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from ppl_fe.diverged import DivergedError
from ppl_fe.inference.program.density import Density
from ppl_fe.inference.program.potential import (
    Potential,
    PotentialProgram,
    potential_arguments,
)
from ppl_fe.inference.run_plan import RunLength, RunPlan, Target
from ppl_fe.inference.step.chains import Chains
from ppl_fe.inference.step.trajectories import Trajectories
from ppl_fe.inference.warmup.learned_in_warmup import Phases
from ppl_fe.inference.warmup.step_size import Adaptation
from ppl_fe.inference.warmup.windows import Windows
from ppl_fe.settings_table import settings_table

Moved = TypeVar("Moved", Chains, Trajectories)
Tuner = TypeVar("Tuner", Adaptation, Windows)


class Prepared(NamedTuple, Generic[Moved, Tuner]):
    """What a kernel makes of a target: chains at their start, and what tunes them in warm-up."""

    chains: Moved
    adaptation: Tuner


class PyroKernel(MCMCKernel, ABC):
    """The protocol of `pyro.infer.MCMC`, for any kernel that can prepare chains."""

    model: Callable[..., Any] | None
    program: Callable[..., Any]
    potential_fn: Potential | None

    @property
    @abstractmethod
    def own_statistics(self) -> tuple[str, ...]:
        """Names of what this sampler alone keeps of a draw."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The sampler's name and all its settings, for the attributes of the draws."""

    @abstractmethod
    def prepare(
        self, target: Target, plan: RunPlan
    ) -> Prepared[Chains, Adaptation] | Prepared[Trajectories, Windows]:
        """Make chains of this sampler on the target."""

    def __repr__(self) -> str:
        program, *given = self._shown()
        shown = [program[1], *(f"{name}={value}" for name, value in given)]
        return f"{type(self).__name__}({', '.join(shown)})"

    def _repr_html_(self) -> str:
        return settings_table(type(self).__name__, self._shown())

    def _shown(self) -> list[tuple[str, str]]:
        """List the program's name, or the potential's, and all settings as they were given."""
        given_as = self.potential_fn or self.program
        what = "program" if self.potential_fn is None else "potential"
        shown = {name: getattr(self, name, value) for name, value in self.settings.items()}
        return [
            (what, getattr(given_as, "__qualname__", repr(given_as))),
            *((name, repr(value)) for name, value in shown.items() if name != "sampler"),
        ]

    def _take_program(self) -> None:
        """Set `program`, from the model or from the potential that stands in its place.

        Raises:
            TypeError: neither or both of them.
        """
        if self.potential_fn is not None and self.model is None:
            self.program = PotentialProgram(self.potential_fn)
        elif self.potential_fn is None and callable(self.model):
            self.program = self.model
        else:
            raise TypeError(
                f"{type(self).__name__} takes a Pyro program, or potential_fn= in its place; got "
                f"model={self.model!r}, potential_fn={self.potential_fn!r}"
            )

    def clear(self) -> None:
        """Forget the chain of `pyro.infer.MCMC`; `fe.sample` keeps none here."""
        self._chains: Chains | Trajectories | None = None
        self._initial: dict[str, Tensor] | None = None
        self.transforms: dict[str, Any] = {}

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Make the one chain of `pyro.infer.MCMC`, which calls this with the program's arguments.

        Args:
            warmup_steps: steps in which "auto" settings are tuned.
            *args, **kwargs: of the program.
        """
        if self.potential_fn is not None:
            args = potential_arguments(args, self._initial)
        density = Density(self.program, args, kwargs)
        self.transforms = density.transforms
        seed = int(torch.randint(2**31, ()))  # follows pyro.set_rng_seed
        start = None
        if self._initial is not None:
            start = density.join({k: v[None] for k, v in self._initial.items()})
        length = RunLength(1, warmup_steps)  # Pyro counts the draws
        plan = RunPlan(length, num_chains=1, seed=seed, compile="traced")
        self._chains, adaptation = self.prepare(Target(density, start=start), plan)
        self._phases: Phases | None = None
        self._adaptation, self._steps_left = adaptation, warmup_steps
        if isinstance(adaptation, Windows):
            # Before Pyro counts: it ends when it has settled.
            adaptation.run(lambda phase: None, lambda: False, lambda: None)
        else:
            assert isinstance(self._chains, Chains)
            self._phases = Phases(self._chains, adaptation, warmup_steps)

    @property
    def initial_params(self) -> dict[str, Tensor]:
        """The unconstrained values of every latent site where the chain starts."""
        if self._chains is None:
            return self._initial or {}
        return self._chains.density.split(self._chains.position[0].clone())

    @initial_params.setter
    def initial_params(self, params: Mapping[str, Tensor]) -> None:
        # MCMC sets this before it calls `setup`, so it is kept until then.
        self._initial = dict(params)

    @torch.no_grad()
    def sample(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take one step.

        Args:
            params: site -> unconstrained values, from which the chain goes on.

        Returns:
            The same a step later.

        Raises:
            DivergedError: the log-density is not finite any more.
        """
        if self._chains is None:
            raise RuntimeError("call setup() first, or run the kernel through MCMC or fe.sample")
        chains = self._chains
        position = chains.density.join({name: value[None] for name, value in params.items()})
        if not torch.equal(position, chains.position):
            chains.start_at(position)
        if self._phases is not None and self._steps_left > 0:
            self._phases.before_step()
            self._steps_left -= 1
        self._adaptation.before_step()
        statistics = chains.advance()
        self._statistics = statistics
        if not torch.isfinite(statistics.log_density).all():
            raise DivergedError(
                f"the chain became non-finite at step size "
                f"{chains.settings['step_size'].item():.3g}; use a smaller one or 'auto'"
            )
        # A copy: two steps later the chains write there again.
        return chains.density.split(chains.position[0].clone())

    def logging(self) -> dict[str, str]:
        """Give what the progress bar of `pyro.infer.MCMC` shows."""
        assert self._chains is not None
        return {
            "step size": f"{self._chains.settings['step_size'].item():.2e}",
            "log density": f"{self._statistics.log_density.item():.4g}",
        }

    def diagnostics(self) -> dict[str, Any]:
        """Give the step size that the run ended with."""
        assert self._chains is not None
        return {"step_size": self._chains.settings["step_size"].item()}
