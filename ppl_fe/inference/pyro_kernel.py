"""The protocol of `pyro.infer.MCMC`: one chain, one step a call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from ppl_fe.inference.adaptation import Adaptation, Tuning
from ppl_fe.inference.chains import Chains
from ppl_fe.inference.compile import CompileMode
from ppl_fe.inference.density import Density
from ppl_fe.inference.phases import Phases


class PyroKernel(MCMCKernel, ABC):
    """What Pyro's runner asks of a kernel, for any kernel that can build `Chains`."""

    model: Callable[..., Any]

    @abstractmethod
    def tuning(self) -> Tuning:
        """What is left to the warm-up."""

    @abstractmethod
    def chains(
        self,
        density: Density,
        num_chains: int,
        *,
        seed: int,
        num_steps: int,
        compile: CompileMode,
        start: Tensor | None = None,
    ) -> Chains:
        """Chains of this sampler on the density."""

    def clear(self) -> None:
        """Forget the chain of `pyro.infer.MCMC`; `fe.sample` keeps none here."""
        self._chains: Chains | None = None
        self._initial: dict[str, Tensor] | None = None
        self.transforms: dict[str, Any] = {}

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Called by `pyro.infer.MCMC` with the program's arguments."""
        density = Density(self.model, args, kwargs)
        self.transforms = density.transforms
        seed = int(torch.randint(2**31, ()))  # follows pyro.set_rng_seed
        start = None
        if self._initial is not None:
            start = density.join({k: v[None] for k, v in self._initial.items()})
        self._chains = self.chains(
            density, 1, seed=seed, num_steps=2 * warmup_steps, compile="traced", start=start
        )
        self._adaptation = Adaptation(self.tuning(), self._chains, warmup_steps)
        self._phases = Phases(self._chains, self._adaptation, warmup_steps)
        self._steps_left = warmup_steps

    @property
    def initial_params(self) -> dict[str, Tensor]:
        """Unconstrained values of every latent site, where the chain starts."""
        if self._chains is None:
            return self._initial or {}
        return self._chains.density.split(self._chains.position[0].clone())

    @initial_params.setter
    def initial_params(self, params: Mapping[str, Tensor]) -> None:
        # MCMC sets this before it calls `setup`, so it is kept until then.
        self._initial = dict(params)

    @torch.no_grad()
    def sample(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One step from `params` (unconstrained) to the next."""
        if self._chains is None:
            raise RuntimeError("call setup() first, or run the kernel through MCMC or fe.sample")
        chains = self._chains
        position = chains.density.join({name: value[None] for name, value in params.items()})
        if not torch.equal(position, chains.position):
            chains.start_at(position)
        if self._steps_left > 0:
            self._phases.before_step()
            self._steps_left -= 1
        self._adaptation.before_step()
        statistics = chains.advance()
        self._statistics = statistics
        if not torch.isfinite(statistics.log_density).all():
            raise FloatingPointError(
                f"the chain became non-finite at step size "
                f"{chains.settings['step_size'].item():.3g}; use a smaller one or 'auto'"
            )
        # A copy: two steps later the chains write there again.
        return chains.density.split(chains.position[0].clone())

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
