"""What a kernel is asked to run: a target, and a plan of how to run it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor

from ppl_fe.arguments import require_integer
from ppl_fe.data import LoaderData
from ppl_fe.inference.program.density import Blocks, Density
from ppl_fe.inference.program.each_chain import Way
from ppl_fe.inference.step.builder import BuiltSteps
from ppl_fe.inference.step.compile import COMPILE_MODES, CompileMode
from ppl_fe.inference.targets import Targets
from ppl_fe.settings_table import settings_table

ChainMethod = Literal["vectorized", "sequential", "parallel"]


# Draws kept for each effective one that is asked for: with fewer R-hat fails by chance for ever.
DRAWS_AN_EFFECTIVE_ONE = 2.0


def check_chains(num_chains: int, chain_method: str) -> None:
    """Refuse a number of chains below one and an unknown way to run them.

    Raises:
        ValueError: as it says.
    """
    if isinstance(num_chains, bool) or not isinstance(num_chains, int) or num_chains < 1:
        raise ValueError(f"num_chains must be a positive integer, got {num_chains!r}")
    methods = get_args(ChainMethod)
    if chain_method not in methods:
        raise ValueError(f"chain_method must be one of {methods}, got {chain_method!r}")


@dataclass(frozen=True)
class RunLength:
    """Count a chain's steps: S kept draws of `thinning` steps each, after a warm-up.

    Args:
        num_samples: S, 1000 by default.
        warmup_steps: steps before the first draw, 500 by default.
        thinning: steps a draw, 1 by default.

    Raises:
        ValueError: no integers, no draw, or no step a draw.

    Example:
        >>> RunLength(100, warmup_steps=50, thinning=3).num_steps
        350
    """

    num_samples: int = 1000
    warmup_steps: int = 500
    thinning: int = 1

    def __post_init__(self) -> None:
        for name, least in (("num_samples", 1), ("warmup_steps", 0), ("thinning", 1)):
            require_integer(name, getattr(self, name), least)

    @property
    def num_steps(self) -> int:
        """Total steps of a chain, warm-up included."""
        return self.warmup_steps + self.num_samples * self.thinning


@dataclass(frozen=True)
class RunPlan:
    """Say how chains are run.

    Args:
        length: of every chain; with `until` its numbers are where the run begins.
        until: targets that end the run, none by default.
        num_chains: C, 4 by default.
        seed: of noise, minibatches and starts, 0 by default.
        chain_method: "vectorized" (default), "sequential" or "parallel", as in `sample`.
        compile: how the step is run, "auto" by default.
        save_to: the zarr folder that draws are written to, none by default.
        resume: go on with the unfinished run in that folder. Default False.
        progress: show a progress bar. Default False.

    Raises:
        ValueError: a number of chains below one, a seed that is none, an unknown method or way to
            compile, a run that cannot be resumed.
    """

    length: RunLength
    until: Targets | None = None
    num_chains: int = 4
    seed: int = 0
    chain_method: ChainMethod = "vectorized"
    compile: CompileMode = "auto"
    save_to: str | Path | None = None
    resume: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        check_chains(self.num_chains, self.chain_method)
        require_integer("seed", self.seed, 0)
        if self.compile not in COMPILE_MODES:
            raise ValueError(f"compile must be one of {COMPILE_MODES}, got {self.compile!r}")
        if self.resume and self.save_to is None:
            raise ValueError("resume=True goes on with the run at save_to; give save_to")
        if self.until is not None and self.chain_method == "parallel":
            raise ValueError(
                "chain_method='parallel' needs a run of fixed length: give num_samples, "
                "warmup_steps and thinning, and no target"
            )
        if self.until is not None:
            held = self.length.num_samples * self.num_chains
            if held < DRAWS_AN_EFFECTIVE_ONE * self.until.ess:
                raise ValueError(
                    f"target_ess={self.until.ess:g} needs room: num_samples times num_chains, the "
                    f"draws that are kept, must be at least {DRAWS_AN_EFFECTIVE_ONE:g} times as "
                    f"many, got {held}"
                )

    def _repr_html_(self) -> str:
        parts = {**vars(self.length), **vars(self)}
        del parts["length"]
        return settings_table("RunPlan", parts.items())

    def of_chain(self, chain: int, save_to: Path | None = None, *, resume: bool = False) -> RunPlan:
        """The plan of one chain in a process by itself, which is silent.

        Args:
            chain: its number.
            save_to: the folder of its own draws. Default none.
            resume: go on with those in it. Default False.
        """
        seed = (self.seed * 1_000_003 + 7919 * (chain + 1)) % 2**31
        own = replace(self, num_chains=1, seed=seed, save_to=save_to, resume=resume)
        return replace(own, progress=False)


@dataclass(frozen=True, eq=False)
class Target:
    """Say what is sampled, and what is known of it beforehand.

    Args:
        density: the log-density of a program.
        source: a loader whose minibatches take the place of the density's tensors, none by default.
        start: (C, D) positions on unconstrained space; the kernel's choice by default.
        center: (C, D), w* of a localised posterior, none by default: chains start overdispersed
            about it, and control variates and temperatures refer to it.
        least_curvature: a lower bound on every direction's curvature (a localiser's γ); by default
            it is estimated.
        num_groups: equal consecutive groups of chains that are tuned together and have moments and
            an R-hat together, 1 by default.
        blocks: names of consecutive runs of coordinates, for temperatures and failures; by default
            the sites.
        steps: what runs of the same program have built, for this one, too; none by default.
    """

    density: Density
    source: LoaderData | None = None
    start: Tensor | None = None
    center: Tensor | None = None
    least_curvature: float | None = None
    num_groups: int = 1
    blocks: Blocks | None = None
    steps: BuiltSteps | None = None

    def of_chain(self, chain: int) -> Target:
        """The target of one chain, which needs no `vmap`."""
        own = slice(chain, chain + 1)
        density = self.density.run_as(Way(vectorized=False))
        density.chain_kwargs = {name: v[own] for name, v in self.density.chain_kwargs.items()}
        return replace(
            self,
            density=density,
            start=None if self.start is None else self.start[own],
            center=None if self.center is None else self.center[own],
            num_groups=1,
            steps=None,
        )

    def of_groups(self, groups: Sequence[int], start: Tensor) -> Target:
        """The targets of some groups, whose chains start where they are told to.

        Args:
            groups: by number, from 0.
            start: (C, D) positions of their chains.
        """
        each = len(start) // len(groups)
        chains = [group * each + place for group in groups for place in range(each)]
        density = self.density.run_as(self.density.way)
        density.chain_kwargs = {name: v[chains] for name, v in self.density.chain_kwargs.items()}
        # Wherever they go on they build for themselves, and so alike.
        return replace(
            self, density=density, start=start, center=None, num_groups=len(groups), steps=None
        )
