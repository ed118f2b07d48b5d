"""Advise on the settings that keep a run's chains slow, and on the length of its warm-up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite, prod
from typing import Any

from numpy import nanmax

from ppl_fe.inference.step.dense_metric import MOST_PARAMETERS

# e⁻⁵ of the start is left: of a start ten standard deviations off, less than a tenth of one.
RELAXATIONS_TO_WARM_UP = 5.0
# Where a cause makes the chains slower than this many times, it is named.
NOISE_COSTS, CONDITION_COSTS = 2.0, 30.0


def shorter_ways(attributes: Mapping[Any, Any]) -> str:
    """Write a clause of advice on the causes that the warm-up measured; "" if none is to blame.

    With gradient-noise variance s² and curvature a along the stiffest direction the tuned step is
    about 1 + s²/(aT) times smaller than without noise, and the slowest direction takes as many
    times longer to relax as its curvature is smaller.

    Args:
        attributes: of the draws of a run with an automatic step size.

    Example:
        >>> facts = {"gradient": "minibatch", "metric": "identity", "temperature": 1.0,
        ...          "sites": '{"slope": [3]}', "tuned_stiffest_curvature": [10.0],
        ...          "tuned_slowest_curvature": [5.0], "tuned_gradient_noise": [200.0]}
        >>> shorter_ways(facts)[:70]
        ', or a shorter way: minibatch noise makes the step 21 times smaller: g'
    """
    ways = []
    stiffest = float(nanmax(attributes["tuned_stiffest_curvature"]))
    noise = float(nanmax(attributes["tuned_gradient_noise"]))
    costs = 1 + noise / (stiffest * attributes["temperature"])
    if isfinite(costs) and costs > NOISE_COSTS:
        cancel = (
            "gradient='control_variate' cancels most of it where there are many more data than "
            "parameters, larger minibatches some"
            if attributes["gradient"] == "minibatch"
            else "larger minibatches cancel some of it"
        )
        ways.append(
            f"minibatch noise makes the step {costs:.0f} times smaller: {cancel}, and all the "
            "data in every step, where they fit, all of it"
        )
    condition = stiffest / float(nanmax(attributes["tuned_slowest_curvature"]))
    num_parameters = sum(prod(shape) for shape in json.loads(attributes["sites"]).values())
    plain = attributes["metric"] == "identity" and num_parameters <= MOST_PARAMETERS
    if plain and condition > CONDITION_COSTS:
        ways.append(
            f"curvatures differ {condition:.0f} times between directions: metric='dense' evens "
            "them out"
        )
    return f", or a shorter way: {'; '.join(ways)}" if ways else ""
