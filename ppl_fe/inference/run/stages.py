"""A run in stages: the chains of some targets go on where they are, those of others end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ppl_fe.inference.pyro_kernel import PyroKernel
from ppl_fe.inference.run.loop import Sampling
from ppl_fe.inference.run_plan import RunLength, RunPlan, Target
from ppl_fe.inference.step.chains import Chains
from ppl_fe.inference.step.trajectories import Trajectories

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


class Stages:
    """Run the chains of several targets, then those of fewer and fewer.

    Args:
        kernel: the sampler.
        target: in equal groups of chains.
        plan: of the first stage, which warms the chains up.
    """

    def __init__(self, kernel: PyroKernel, target: Target, plan: RunPlan) -> None:
        self._kernel, self._target, self._plan = kernel, target, plan
        self._each = plan.num_chains // target.num_groups
        self._groups, self._number = list(range(target.num_groups)), 0
        self._last: Sampling | None = None

    def begin(self) -> Stage:
        """Warm all chains up and draw, as planned.

        Raises:
            DivergedError: no chain is left.
        """
        sampling = Sampling(self._kernel, self._target, self._plan)
        with sampling.watch.bar:
            sampling.begin()
            return self._drawn(sampling)

    def go_on(self, groups: Sequence[int], num_samples: int) -> Stage:
        """Draw so many more from some of the groups of the last stage, by its settings.

        Args:
            groups: by their number in the first stage, in its order.
            num_samples: draws of each chain, of as many steps as those before.

        Raises:
            DivergedError: no chain is left.
        """
        before = self._last
        assert before is not None
        places = [self._groups.index(group) for group in groups]
        chains = [place * self._each + k for place in places for k in range(self._each)]
        self._number += 1
        plan = replace(
            self._plan,
            length=RunLength(num_samples, warmup_steps=0, thinning=before.thinning),
            until=None,
            num_chains=len(chains),
            seed=self._plan.seed + SEEDS_APART * self._number,
        )
        start = before.chains.position[chains]
        sampling = Sampling(self._kernel, self._target.of_groups(groups, start), plan)
        _go_on(sampling, before, chains)
        self._groups = [*groups]
        with sampling.watch.bar:
            return self._drawn(sampling)

    def _drawn(self, sampling: Sampling) -> Stage:
        found = sampling.draw()
        losses = np.asarray(found.recorder.losses(), dtype=np.float64)
        losses[[*found.failed]] = np.nan
        self._last = sampling
        parts = dict(zip(self._groups, np.split(losses, len(self._groups)), strict=True))
        return Stage(parts, sampling.chains.num_gradients, found.facts, found.interrupted)


def _go_on(sampling: Sampling, before: Sampling, chains: Sequence[int]) -> None:
    """Put a run's chains where those of another are, and hold what that one has learnt."""
    after, other = sampling.chains, before.chains
    if isinstance(after, Chains):
        assert isinstance(other, Chains)
        after.go_on_from(other, chains)
    else:
        assert isinstance(other, Trajectories)
        after.go_on_from(other, chains)
    sampling.adaptation.num_steps = 1  # past its warm-up of no step
    sampling.report = {name: values[[*chains]] for name, values in before.report.items()}
