"""One step of all chains as a function of tensors alone, ready to be traced."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ppl_fe.inference.dynamics import Dynamics
from ppl_fe.inference.program.density import Blocks, Data, Indices, Tensors
from ppl_fe.inference.step.dense_metric import LinearMap
from ppl_fe.inference.step.gradients import Anchor, Batch, Estimator, Evaluation
from ppl_fe.inference.step.temperature import block_virials, directional_virial


class Totals(NamedTuple):
    """What a step adds up; every entry has a leading chain dimension.

    log_likelihood (C,); virials (C, L + 1), of the L blocks and of the stiffest direction;
    num_steps (C,); failed_at (C,): the first step whose gradient was not finite, or −1;
    failed_blocks (C, L): the blocks in which it was not.
    """

    log_likelihood: Tensor
    virials: Tensor
    num_steps: Tensor
    failed_at: Tensor
    failed_blocks: Tensor

    @classmethod
    def zero(cls, position: Tensor, num_blocks: int) -> Totals:
        """Give the totals before the first step."""
        num_chains = len(position)
        count = torch.zeros(num_chains, dtype=torch.int64, device=position.device)
        failed = torch.zeros(num_chains, num_blocks, dtype=torch.bool, device=position.device)
        sums = position.new_zeros(num_chains)
        return cls(sums, position.new_zeros(num_chains, num_blocks + 1), count, count - 1, failed)

    def add(self, log_likelihood: Tensor, virials: Tensor) -> Totals:
        """Give the totals after one step more."""
        finite = virials[:, :-1].isfinite()
        fails = ~finite.all(-1) & (self.failed_at < 0)
        return Totals(
            self.log_likelihood + log_likelihood,
            self.virials + virials,
            self.num_steps + 1,
            torch.where(fails, self.num_steps, self.failed_at),
            torch.where(fails[:, None], ~finite, self.failed_blocks),
        )


class Statistics(NamedTuple):
    """One step's by-products at the position it started from, in one tensor (C, 2).

    One, as every tensor that a compiled step returns costs it about a microsecond.
    """

    values: Tensor

    @property
    def log_density(self) -> Tensor:
        """(C,)."""
        return self.values[:, 0]

    @property
    def gradient_norm(self) -> Tensor:
        """(C,)."""
        return self.values[:, 1]


class Fixed(NamedTuple):
    """Tensors that change between phases of a run, if at all, and never from step to step.

    center, direction (C, D): of the temperature, in the chains' coordinates. anchor: of control
    variates. metric: the map from the chains' coordinates to positions. () where there is none.
    """

    center: Tensor
    direction: Tensor
    anchor: Anchor | tuple[()]
    metric: LinearMap | tuple[()]


@dataclass(frozen=True, slots=True)  # every step reads five: faster than a NamedTuple's
class Slots:
    """Where each field of an `Inputs` lies among its leaves, under the field's name."""

    state: slice
    totals: slice
    noise: slice
    indices: slice
    settings: slice
    chain_values: slice
    tensors: slice
    fixed: slice
    spare: slice


class Inputs(NamedTuple):
    """All that a step reads.

    Args:
        state: the sampler's, a NamedTuple whose first entry is the position (C, D).
        totals: what the step adds to, in place.
        noise: (C, D), standard normal.
        indices: of the minibatch, a set (C, B) for each plate that subsamples.
        settings: "step_size", "temperature" and the sampler's own, (C, 1) each.
        chain_values: what differs from chain to chain in the program's arguments, (C, ...) each.
        tensors: the program's data; a list of each chain's where their shapes differ.
        fixed: centre and direction of the temperature, anchor, metric.
        spare: where the step puts the new state. Chains swap it with `state` after every step:
            memory taken fresh for every step costs more in page faults than the step itself from
            10^7 parameters on.
    """

    state: Any
    totals: Totals
    noise: Tensor
    indices: Indices
    settings: dict[str, Tensor]
    chain_values: Tensors
    tensors: Data
    fixed: Fixed
    spare: Tensors

    def slots(self) -> Slots:
        """Find where each field's tensors lie in `pytree.tree_leaves(self)`.

        Example:
            >>> zero = torch.zeros(())
            >>> Inputs((zero, zero), (), zero, (), {}, (), (), (), ()).slots().noise
            slice(2, 3, None)
        """
        ends = list(itertools.accumulate(len(pytree.tree_leaves(value)) for value in self))
        slices = map(slice, [0, *ends], ends)
        return Slots(**dict(zip(self._fields, slices, strict=True)))


def flat_step(
    dynamics: Dynamics, estimator: Estimator, blocks: Blocks, structure: pytree.TreeSpec
) -> Callable[..., list[Tensor]]:
    """Make the step: the leaves of an `Inputs` -> the one of a `Statistics`.

    It writes the new state to `spare` and adds to the totals in place.

    Args:
        dynamics: the sampler.
        estimator: of the gradient.
        blocks: the runs of coordinates whose temperatures are followed.
        structure: of the `Inputs`.
    """

    def step(*leaves: Tensor) -> list[Tensor]:
        given: Inputs = pytree.tree_unflatten(list(leaves), structure)
        state, fixed, metric = given.state, given.fixed, given.fixed.metric
        batch = Batch(given.indices, given.chain_values, given.tensors)
        at = _evaluate(estimator, state.position, batch, fixed)
        gradient = metric.to_gradient(at.gradient) if metric else at.gradient
        displacement = state.position - fixed.center
        along_blocks = metric.to_displacement(displacement) if metric else displacement
        virials = torch.cat(
            [
                block_virials(blocks, along_blocks, at.gradient),
                directional_virial(fixed.direction, displacement, gradient),
            ],
            -1,
        )
        new = dynamics.step(state, gradient, given.noise, given.settings)
        totals = given.totals.add(at.log_likelihood, virials)
        places = (*given.spare, *given.totals)
        for place, value in zip(places, (*new, *totals), strict=True):
            place.copy_(value)
        norm = torch.linalg.vector_norm(at.gradient, dim=-1)
        return [torch.stack([at.log_density, norm], -1)]

    return step


def flat_evaluation(
    estimator: Estimator, structure: pytree.TreeSpec
) -> Callable[..., Sequence[Tensor]]:
    """Make the gradient alone: leaves of (position, `Batch`, `Fixed`) -> those of an `Evaluation`.

    Position and gradient are in the chains' own coordinates.

    Args:
        estimator: of the gradient.
        structure: of the three.
    """

    def function(*leaves: Tensor) -> list[Tensor]:
        given = pytree.tree_unflatten(list(leaves), structure)
        at, metric = _evaluate(estimator, *given), given[-1].metric
        return [*(at._replace(gradient=metric.to_gradient(at.gradient)) if metric else at)]

    return function


def _evaluate(estimator: Estimator, own: Tensor, batch: Batch, fixed: Fixed) -> Evaluation:
    position = fixed.metric.to_position(own) if fixed.metric else own
    return estimator(position, batch, fixed.anchor or None)
