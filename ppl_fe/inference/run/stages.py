"""A run in stages: the chains of some targets go on where they are, those of others end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ppl_fe.inference.pyro_kernel import PyroKernel
from ppl_fe.inference.run.loop import Sampling
from ppl_fe.inference.run_plan import RunLength, RunPlan, Target

SEEDS_APART = 1009  # of two stages; a ranking's lots are a million apart


class Stage(NamedTuple):
    """What one stage gave.

    losses: group -> (C/G, S) mean −log-likelihood of a datum, NaN throughout for a chain that
        failed. num_gradients: of each chain. facts: of the run. interrupted: by Ctrl-C.
    """

    losses: dict[int, NDArray[np.float64]]
    num_gradients: int
    facts: Mapping[str, Any]
    interrupted: bool


class Standing(NamedTuple):
    """Where a stage has ended: all that the next one goes on from, another process's as well.

    number: of the stage. groups: that it ran. thinning: steps a draw. position: (C, D). chains:
    what `Chains.left` or `Trajectories.left` gives. report: of the warm-up.
    """

    number: int
    groups: list[int]
    thinning: int
    position: Tensor
    chains: Any
    report: dict[str, Tensor]


class Stages:
    """Run the chains of several targets, then those of fewer and fewer.

    Args:
        kernel: the sampler.
        target: in equal groups of chains.
        plan: of the first stage, which warms the chains up.

    Attributes:
        standing: where the last stage has ended; None before the first.
    """

    def __init__(self, kernel: PyroKernel, target: Target, plan: RunPlan) -> None:
        self._kernel, self._target, self._plan = kernel, target, plan
        self._each = plan.num_chains // target.num_groups
        self.standing: Standing | None = None

    def begin(self) -> Stage:
        """Warm all chains up and draw, as planned.

        Raises:
            DivergedError: no chain is left.
        """
        sampling = Sampling(self._kernel, self._target, self._plan)
        with sampling.watch.bar:
            sampling.begin()
            return self._drawn(sampling, 0, list(range(self._target.num_groups)))

    def go_on(self, groups: Sequence[int], num_samples: int) -> Stage:
        """Draw so many more from some of the groups of the last stage, by its settings.

        Args:
            groups: by their number in the first stage, in its order.
            num_samples: draws of each chain, of as many steps as those before.

        Raises:
            DivergedError: no chain is left.
        """
        before = self.standing
        assert before is not None
        places = [before.groups.index(group) for group in groups]
        chains = [place * self._each + k for place in places for k in range(self._each)]
        number = before.number + 1
        plan = replace(
            self._plan,
            length=RunLength(num_samples, warmup_steps=0, thinning=before.thinning),
            until=None,
            num_chains=len(chains),
            seed=self._plan.seed + SEEDS_APART * number,
        )
        start = before.position[chains]
        sampling = Sampling(self._kernel, self._target.of_groups(groups, start), plan)
        # Where those chains are, and by what they have learnt.
        sampling.chains.go_on_from(before.chains, chains)
        sampling.adaptation.num_steps = 1  # past its warm-up of no step
        sampling.report = {name: values[chains] for name, values in before.report.items()}
        with sampling.watch.bar:
            return self._drawn(sampling, number, [*groups])

    def _drawn(self, sampling: Sampling, number: int, groups: list[int]) -> Stage:
        found = sampling.draw()
        losses = np.asarray(found.recorder.losses(), dtype=np.float64)
        losses[[*found.failed]] = np.nan
        chains = sampling.chains
        self.standing = Standing(
            number, groups, sampling.thinning, chains.position, chains.left(), sampling.report
        )
        parts = dict(zip(groups, np.split(losses, len(groups)), strict=True))
        return Stage(parts, chains.num_gradients, found.facts, found.interrupted)
