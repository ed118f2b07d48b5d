"""Choose between plain minibatches and control variates by the noise that each is measured to have.

A control variate costs two gradients a step, and buys a longer step: the sampler itself predicts
how many steps the slowest direction takes to relax at the settings that a noise allows. At a step
given by hand it buys less bias, and has to do better than a minibatch of twice the size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_fe.inference.dynamics import Measured
from ppl_fe.inference.step.chains import Chains
from ppl_fe.inference.step.gradients import Batch
from ppl_fe.inference.warmup.curvature import ASSUMED_CONDITION, stiffest
from ppl_fe.inference.warmup.starts import OVERDISPERSION
from ppl_fe.inference.warmup.step_size import Tuning

NUM_DRAWS = 16  # minibatches a chain: of four chains a variance is known to a fifth
GRADIENTS = 2.0  # that a step with control variates takes for one


def control_variates_pay(chains: Chains, tuning: Tuning) -> bool:
    """Say whether control variates reach an answer with fewer gradients than plain minibatches.

    The noise is measured as far from the anchor as the posterior reaches, which is half as far as
    its starts are.

    Args:
        chains: with control variates about a mode, at starts spread about it.
        tuning: of their settings.
    """
    assert chains.anchor is not None
    metric, own = chains.metric, chains.state.position
    center = chains.anchor.position
    if metric is not None:
        center = metric.from_position(center)
    typical = center + (own - center) / OVERDISPERSION
    position = typical if metric is None else metric.to_position(typical)
    found = stiffest(chains)
    along = found.direction / torch.linalg.vector_norm(found.direction, dim=-1, keepdim=True)
    noise = [list[Tensor](), list[Tensor]()]
    with torch.no_grad():
        for _ in range(NUM_DRAWS):
            indices = chains.stream.indices()
            batch = Batch(indices, chains.density.chain_values, chains.density.tensors)
            without = chains.estimator(position, batch, None).gradient
            if metric is not None:
                without = metric.to_gradient(without)
            for kept, gradient in zip(
                noise, (chains.evaluate(typical, indices).gradient, without), strict=True
            ):
                kept.append((gradient * along).sum(-1))
    with_them, without_them = (torch.stack(kept).var(0).mean() for kept in noise)
    if tuning.schedule is not None:
        return bool(GRADIENTS * with_them < without_them)
    return GRADIENTS * _relaxation(chains, tuning, found.curvature, with_them) < _relaxation(
        chains, tuning, found.curvature, without_them
    )


def _relaxation(chains: Chains, tuning: Tuning, curvature: Tensor, noise: Tensor) -> float:
    """Predict the steps of a relaxation at the step that this noise allows."""
    stiff = curvature.nanmedian().expand_as(curvature)
    slow = stiff if chains.metric is not None else stiff / ASSUMED_CONDITION
    temperature = chains.settings["temperature"]
    measured = Measured(stiff, slow, noise.expand_as(stiff), temperature)
    settings = {**chains.settings, **tuning.tune(measured, tuning.tolerance, None)}
    return float(tuning.dynamics.relaxation_steps(slow, settings).max())
