"""Checkpoints in a race: their chains side by side, stage after stage, and what they have cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from ppl_fe.data.sources import LoaderData, TensorData
from ppl_fe.free_energy.candidates import in_words
from ppl_fe.free_energy.chain_options import ChainOptions
from ppl_fe.free_energy.estimate import FreeEnergyEstimate
from ppl_fe.free_energy.estimators import summarize_group
from ppl_fe.free_energy.local_chains import LocalChains, local_target
from ppl_fe.free_energy.lots import anchors_of
from ppl_fe.inference.run.stages import Stage, Stages
from ppl_fe.inference.run_plan import RunLength
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


class Heat:
    """Checkpoints whose chains run side by side.

    Args:
        networks: that share their buffers.
        source: the data.
        options: of the chains, with targets.
    """

    def __init__(
        self,
        networks: Mapping[str, FlatNetwork],
        source: TensorData | LoaderData,
        options: ChainOptions,
    ) -> None:
        shared = next(iter(networks.values()))
        anchors = anchors_of(networks.values())
        self._made = made = local_target(shared, anchors, source, options)
        self.num_chains = options.num_chains
        self.passes_a_gradient = made.attributes["batch_size"] / made.num_data * options.num_chains
        until = made.plan.until
        assert until is not None
        self.most_gradients = until.max_steps
        plan = replace(
            made.plan,
            length=RunLength(PILOT_DRAWS // options.num_chains, made.plan.length.warmup_steps),
            until=replace(until, ess=PILOT_ESS, r_hat=PILOT_R_HAT, error=1.0),
        )
        self._stages = Stages(made.kernel, made.target, plan)
        self.contenders = {name: Contender(self, group) for group, name in enumerate(networks)}
        self._facts: dict[str, Any] = {}

    def begin(self) -> bool:
        """Run the pilot; say whether it was interrupted.

        Raises:
            DivergedError: no chain is left.
        """
        stage = self._stages.begin()
        self._facts = {**stage.facts, "interrupted": stage.interrupted}
        for contender in self.contenders.values():
            contender.add(stage)
        return stage.interrupted

    def go_on(self, contenders: Sequence[Contender]) -> bool:
        """Double the draws of some, by number; say whether this was interrupted."""
        groups = [contender.group for contender in contenders]
        try:
            stage = self._stages.go_on(groups, contenders[0].losses.shape[1])
        except Exception as error:  # what was drawn before stands
            for contender in contenders:
                contender.trouble = f"its chains could not go on: {in_words(error)}"
            return False
        for contender in contenders:
            contender.add(stage)
        return stage.interrupted

    def chains_of(self, group: int, losses: NDArray[np.float64]) -> LocalChains:
        """Give the chains of one group by themselves."""
        made, each = self._made, self.num_chains
        own = slice(group * each, (group + 1) * each)
        facts = {k: v[own].tolist() for k, v in self._facts.items() if isinstance(v, torch.Tensor)}
        good = np.isfinite(losses).all(1)
        stats = xr.Dataset(
            {"loss": (("chain", "draw"), losses[good])}, coords={"chain": np.flatnonzero(good)}
        )
        draws = xr.DataTree.from_dict({"sample_stats": stats})
        draws.attrs = {**self._facts, **made.attributes, **facts}
        return LocalChains(
            draws,
            made.anchor_loss[[group]],
            made.num_data,
            made.inverse_temperature[own],
            1,
            made.notes,
        )
