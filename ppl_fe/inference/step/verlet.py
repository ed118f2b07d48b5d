"""One step of a trajectory of all chains as a function of tensors alone, ready to be traced."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ppl_fe.inference.dynamics import malt
from ppl_fe.inference.program.density import Tensors
from ppl_fe.inference.step.gradients import Batch, Estimator
from ppl_fe.inference.step.metric_factor import Metric


class Inputs(NamedTuple):
    """All that a step of a trajectory reads.

    state: where the chains stand. noise (C, D): standard normal. step_size, decay (C, 1): h, and
    exp(−f h) or 0 where the velocity is drawn afresh. factor: of the metric. chain_values, tensors:
    of the program.
    """

    state: malt.State
    noise: Tensor
    step_size: Tensor
    decay: Tensor
    factor: Metric
    chain_values: Tensors
    tensors: Tensors


def verlet(estimator: Estimator, given: Inputs) -> malt.State:
    """Take one step of a trajectory, O B A B: one gradient (`dynamics/malt.py`)."""
    state, h, factor = given.state, given.step_size, given.factor
    velocity = malt.refreshed(state.velocity, given.noise, given.decay)
    before = malt.energy(velocity, state.log_density)
    velocity = velocity + 0.5 * h * factor.transpose(state.gradient)
    position = state.position + h * factor.forward(velocity)
    at = estimator(position, Batch((), given.chain_values, given.tensors), None)
    velocity = velocity + 0.5 * h * factor.transpose(at.gradient)
    error = state.energy_error + malt.energy(velocity, at.log_density) - before
    return malt.State(position, velocity, *at, error)
