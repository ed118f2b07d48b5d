"""Checkpoints in a race: their chains side by side, stage after stage, and what they have cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from ppl_fe.data.sources import LoaderData, TensorData
from ppl_fe.files.atomic import atomic_write
from ppl_fe.free_energy.candidates import in_words
from ppl_fe.free_energy.chain_options import ChainOptions
from ppl_fe.free_energy.estimate import FreeEnergyEstimate
from ppl_fe.free_energy.estimators import summarize_group
from ppl_fe.free_energy.local_chains import LocalChains, LocalTarget, local_target
from ppl_fe.free_energy.lots import anchors_of
from ppl_fe.inference.run.stages import Stage, Stages
from ppl_fe.inference.run_plan import RunLength
from ppl_fe.inference.step.builder import BuiltSteps
from ppl_fe.networks.flat import FlatNetwork

PILOT_ESS, PILOT_R_HAT, PILOT_DRAWS = 100.0, 1.05, 400  # draws of all chains of a checkpoint


class Contender:
    """One checkpoint in a race: the losses of its chains so far, and what they cost.

    Args:
        heat: whose chains are among others.
        group: the number of its own.

    Attributes:
        losses: (C/G, S) so far.
        passes: over the data.
        num_gradients: of each chain.
        trouble: why its chains cannot go on; "" otherwise.
    """

    def __init__(self, heat: Heat, group: int) -> None:
        self.heat, self.group = heat, group
        self.losses: NDArray[np.float64] = np.empty((heat.num_chains, 0))
        self.passes, self.num_gradients, self.trouble = 0.0, 0, ""

    def add(self, stage: Stage) -> None:
        """Take the draws of a stage."""
        self.losses = np.concatenate([self.losses, stage.losses[self.group]], 1)
        self.num_gradients += stage.num_gradients
        self.passes += stage.num_gradients * self.heat.passes_a_gradient

    def estimate(self) -> FreeEnergyEstimate:
        """Estimate WBIC and λ̂ from the draws so far.

        Raises:
            DivergedError: none of its chains stayed finite.
        """
        found = self.heat.chains_of(self.group, self.losses)
        made = summarize_group(found, 0, r_hat_limit=PILOT_R_HAT, ess_limit=PILOT_ESS)
        return replace(made, notes=(*made.notes, self.trouble)) if self.trouble else made

    def can_go_on(self, estimate: FreeEnergyEstimate) -> bool:
        """Say whether twice the draws are within the steps of an estimate, and would be of use."""
        most = self.heat.most_gradients
        slowness = max(
            PILOT_ESS / max(estimate.ess, 1e-9), (estimate.r_hat - 1) / (PILOT_R_HAT - 1)
        )
        within = 2 * self.num_gradients <= most and slowness * self.num_gradients <= 2 * most
        return within and not self.trouble


class _Known(NamedTuple):
    """What is known of the chains of a heat before they run; the fields are `LocalTarget`'s."""

    attributes: dict[str, Any]
    anchor_loss: Tensor
    num_data: int
    inverse_temperature: Tensor
    notes: tuple[str, ...]


class Heat:
    """Checkpoints whose chains run side by side, from the end of their pilot on.

    It can be pickled where its chains are put away in a file.

    Args:
        networks: that share their buffers.
        source: the data.
        options: of the chains, with targets.
        shelf: the file for where the chains stand, from which any process goes on; by default they
            stay in this one.
        steps: what heats before have built, by default nothing.

    Attributes:
        contenders: by name.
        chains: the chains, or their file.
        interrupted: the pilot was, by Ctrl-C.

    Raises:
        DivergedError: no chain is left.
    """

    def __init__(
        self,
        networks: Mapping[str, FlatNetwork],
        source: TensorData | LoaderData,
        options: ChainOptions,
        shelf: Path | None = None,
        steps: BuiltSteps | None = None,
    ) -> None:
        made = _made(networks, source, options, steps)
        self.num_chains = options.num_chains
        self.passes_a_gradient = made.attributes["batch_size"] / made.num_data * options.num_chains
        assert made.plan.until is not None
        self.most_gradients = made.plan.until.max_steps
        self._known = _Known(*(getattr(made, name) for name in _Known._fields))
        stages = _stages(made, options)
        stage = stages.begin()
        self.interrupted = stage.interrupted
        self._facts = {**stage.facts, "interrupted": stage.interrupted}
        self.contenders = {name: Contender(self, group) for group, name in enumerate(networks)}
        for contender in self.contenders.values():
            contender.add(stage)
        self.chains = stages if shelf is None else _put_away(stages, shelf)

    def take(self, contenders: Sequence[Contender], found: Stage | Exception) -> bool:
        """Take the draws by which some have gone on, or why they cannot; say if interrupted."""
        if isinstance(self.chains, Path):
            self.chains = next_shelf(self.chains)
        for contender in contenders:
            if isinstance(found, Exception):  # what was drawn before stands
                contender.trouble = f"its chains could not go on: {in_words(found)}"
            else:
                contender.add(found)
        return isinstance(found, Stage) and found.interrupted

    def chains_of(self, group: int, losses: NDArray[np.float64]) -> LocalChains:
        """Give the chains of one group by themselves."""
        known, each = self._known, self.num_chains
        own = slice(group * each, (group + 1) * each)
        facts = {k: v[own].tolist() for k, v in self._facts.items() if isinstance(v, Tensor)}
        good = np.isfinite(losses).all(1)
        stats = xr.Dataset(
            {"loss": (("chain", "draw"), losses[good])}, coords={"chain": np.flatnonzero(good)}
        )
        draws = xr.DataTree.from_dict({"sample_stats": stats})
        draws.attrs = {**self._facts, **known.attributes, **facts}
        return LocalChains(
            draws,
            known.anchor_loss[[group]],
            known.num_data,
            known.inverse_temperature[own],
            1,
            known.notes,
        )


class GoingOn(NamedTuple):
    """How some contenders of a heat go on.

    chains: of the heat, or their file. groups: the contenders' numbers. num_samples: draws of each
    chain more.
    """

    chains: Stages | Path
    groups: list[int]
    num_samples: int

    @classmethod
    def of(cls, contenders: Sequence[Contender]) -> GoingOn:
        """Double the draws of contenders of one heat."""
        groups = [contender.group for contender in contenders]
        return cls(contenders[0].heat.chains, groups, contenders[0].losses.shape[1])

    def draw(
        self,
        networks: Mapping[str, FlatNetwork],
        source: TensorData | LoaderData,
        options: ChainOptions,
    ) -> Stage:
        """Draw them, in the process of their heat or in another.

        Args:
            networks, source, options: of the heat, as its pilot had them.

        Raises:
            DivergedError: no chain is left.
        """
        if isinstance(self.chains, Stages):
            return self.chains.go_on(self.groups, self.num_samples)
        stages = _stages(_made(networks, source, options), options)
        stages.standing = torch.load(self.chains, weights_only=False)
        stage = stages.go_on(self.groups, self.num_samples)
        _put_away(stages, next_shelf(self.chains))
        return stage


def next_shelf(shelf: Path) -> Path:
    """Name the file of the stage after: a try that is made again finds the one before as it was."""
    lot, stage = shelf.stem.split(".")
    return shelf.with_name(f"{lot}.{int(stage) + 1}{shelf.suffix}")


def _put_away(stages: Stages, shelf: Path) -> Path:
    with atomic_write(shelf) as aside:
        torch.save(stages.standing, aside)
    return shelf


def _made(
    networks: Mapping[str, FlatNetwork],
    source: TensorData | LoaderData,
    options: ChainOptions,
    steps: BuiltSteps | None = None,
) -> LocalTarget:
    shared = next(iter(networks.values()))
    return local_target(shared, anchors_of(networks.values()), source, options, steps=steps)


def _stages(made: LocalTarget, options: ChainOptions) -> Stages:
    until = made.plan.until
    assert until is not None
    plan = replace(
        made.plan,
        length=RunLength(PILOT_DRAWS // options.num_chains, made.plan.length.warmup_steps),
        until=replace(until, ess=PILOT_ESS, r_hat=PILOT_R_HAT, error=1.0),
    )
    return Stages(made.kernel, made.target, plan)
