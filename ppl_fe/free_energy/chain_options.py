"""How the chains about an anchor are made: what all estimators share, with their defaults."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from ppl_fe.arguments import given, require_batch_size
from ppl_fe.data.sources import LoaderData, TensorData
from ppl_fe.inference.adjusted import MALT
from ppl_fe.inference.kernels import Kernel
from ppl_fe.inference.run_plan import RunLength, RunPlan
from ppl_fe.inference.samplers import BAOAB
from ppl_fe.inference.step.compile import CompileMode
from ppl_fe.inference.targets import Targets
from ppl_fe.models.likelihoods import Likelihood
from ppl_fe.ranks import are_several, refuse_exact_gradients, share_of

USUAL_LENGTH = RunLength(num_samples=500, warmup_steps=1000, thinning=10)
USUAL_BATCH = 256
MOST_KEPT, MOST_TRAJECTORIES = 2000, 1000  # draws of an anchor, where a run ends by its targets
# Data that all go into a step: exact trajectories need a tenth of the steps of minibatches of 256.
MOST_ROWS = 10 * USUAL_BATCH

Sampler = type[Kernel] | type[MALT]


@dataclass(frozen=True)
class ChainOptions:
    """How the chains about an anchor are made: what all estimators share, with their defaults.

    Attributes:
        likelihood: a name, or a function of (outputs, targets).
        localization: γ.
        inverse_temperature: β; None for 1/log n.
        batch_size: examples a step; None for all of them; "auto" as the kernel has it.
        kernel: the sampler's class; "auto" for the one that is cheaper (`chosen`).
        step_size: ε, or "auto".
        tolerance: the largest predicted excess temperature of the stiffest direction.
        num_chains: chains about each anchor, of each rung if there is a ladder.
        length: S kept draws a chain, the steps before the first, and the steps of each; None to
            run until the loss has mixed and λ̂ is known.
        chain_method, seed, save_to, resume, progress_bar, compile: as in `fe.sample`.
    """

    likelihood: str | Likelihood = "categorical"
    localization: float = 1.0
    inverse_temperature: float | None = None
    batch_size: int | Literal["auto"] | None = "auto"
    kernel: Sampler | Literal["auto"] = "auto"
    step_size: float | Literal["auto"] = "auto"
    tolerance: float = 0.02
    num_chains: int = 4
    length: RunLength | None = None
    chain_method: Literal["vectorized", "sequential", "parallel"] = "vectorized"
    seed: int = 0
    save_to: str | Path | None = None
    resume: bool = False
    progress_bar: bool = True
    compile: CompileMode = "auto"

    def chosen(self, source: TensorData | LoaderData) -> ChainOptions:
        """Put what is cheaper in the place of "auto".

        All the data in every step, by `fe.MALT`, where a run goes on until its targets, its step is
        chosen and the data are few: its steps are a tenth as many, and exact. Minibatches, by
        `fe.BAOAB`, elsewhere, and where several ranks share them out.

        Args:
            source: the data.

        Raises:
            ValueError: minibatches for a sampler that needs exact gradients; no batch size.
        """
        n, kernel, size = source.num_data, self.kernel, self.batch_size
        require_batch_size(None if size == "auto" else size)
        if kernel == "auto":
            whole = size is None or (size == "auto" and n <= MOST_ROWS)
            until = self.has_targets and self.step_size == "auto"
            in_memory = isinstance(source, TensorData)
            kernel = MALT if whole and until and in_memory and not are_several() else BAOAB
        if not isinstance(kernel, type):
            raise TypeError(f"kernel must be a sampler's class, such as fe.BAOAB, got {kernel!r}")
        exact = issubclass(kernel, MALT)
        if size == "auto":
            size = None if exact or n <= USUAL_BATCH else USUAL_BATCH
        elif exact and size is not None and size < n:
            raise ValueError(
                f"batch_size={size} of {n} examples: {kernel.__name__} needs exact gradients; give "
                "batch_size=None, or another kernel"
            )
        if isinstance(source, TensorData) and are_several():
            if size is None or size >= n:
                refuse_exact_gradients()
            share_of(size or n, n)
        return replace(self, kernel=kernel, batch_size=size)

    @property
    def has_targets(self) -> bool:
        """Whether the run goes on until its targets; one with a process a chain has a length."""
        return self.length is None and self.chain_method != "parallel"

    def plan(self, num_chains: int, anchor_loss: Tensor) -> RunPlan:
        """Say how `num_chains` chains, of all anchors and rungs together, are run.

        Args:
            num_chains: of all.
            anchor_loss: (G,) L_n(w*), from which the targets of a run without a length count.
        """
        length, until = self.length or USUAL_LENGTH, None
        if self.has_targets:
            kept = MOST_TRAJECTORIES if self.kernel is MALT else MOST_KEPT
            length = RunLength(kept // self.num_chains, USUAL_LENGTH.warmup_steps)
            until = Targets(loss_offsets=tuple(anchor_loss.tolist()))
        return RunPlan(
            length,
            until=until,
            num_chains=num_chains,
            seed=self.seed,
            chain_method=self.chain_method,
            compile=self.compile,
            save_to=self.save_to,
            resume=self.resume,
            progress=self.progress_bar,
        )


def length_of(
    num_samples: int | None, warmup_steps: int | None, thinning: int | None
) -> RunLength | None:
    """Give the length asked for, the usual numbers where only some were given; or None."""
    named = given(num_samples=num_samples, warmup_steps=warmup_steps, thinning=thinning)
    return RunLength(**{**vars(USUAL_LENGTH), **named}) if named else None
