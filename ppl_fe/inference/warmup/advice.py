"""Advise on the settings that keep a run's chains slow, by names that the run has.

An estimate has no argument for gradients, metrics or starts, a run on all the data none for the
size of its minibatches, and `sample` none for a localiser.
"""

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
# Nobody takes more steps than that of one chain.
MOST_STEPS = 10_000_000

Attributes = Mapping[Any, Any]


def longer(name: str, wanted: float, attributes: Attributes) -> str:
    """Write what a run with too few steps needs: more of them, or where no run is that long, what
    else would help.

    Args:
        name: the argument that counts them.
        wanted: its least value.
        attributes: of the draws.

    Example:
        >>> facts = {"sites": '{"slope": [3]}', "metric": "dense", "step_size": 0.1}
        >>> longer("warmup_steps", 900, facts)
        'give at least warmup_steps=900'
        >>> longer("warmup_steps", 3e9, facts)[:64]
        'no run is that long: this sampler will not do here. Give columns'
    """
    ways = shorter_ways(attributes)
    if wanted * _steps_each(name, attributes) <= MOST_STEPS:
        less = f", or a shorter way: {'; '.join(ways)}" if ways else ""
        return f"give at least {name}={wanted:.0f}{less}"
    otherwise = (
        "Raise localization, which makes the posterior rounder"
        if "localization" in attributes
        else "Give columns of data in like units, write scales apart from what they scale "
        "(mean + scale * z), or run the program under Pyro's NUTS"
    )
    first = f" {'; '.join(ways)}." if ways else ""
    return f"no run is that long: this sampler will not do here.{first} {otherwise}"


def _steps_each(name: str, attributes: Attributes) -> float:
    return float(attributes["thinning"]) if name == "num_samples" else 1.0


def shorter_ways(attributes: Attributes) -> list[str]:
    """Name the causes that the warm-up measured, each with what would remove it.

    With gradient-noise variance s² and curvature a along the stiffest direction the tuned step is
    about 1 + s²/(aT) times smaller than without noise, and the slowest direction takes as many
    times longer to relax as its curvature is smaller.

    Args:
        attributes: of the draws of a run; without an automatic step size nothing is known.

    Example:
        >>> facts = {"gradient": "minibatch", "metric": "identity", "temperature": 1.0,
        ...          "sites": '{"slope": [3]}', "tuned_stiffest_curvature": [10.0],
        ...          "tuned_slowest_curvature": [5.0], "tuned_gradient_noise": [200.0]}
        >>> shorter_ways(facts)[0][:49]
        'minibatch noise makes the step 21 times smaller: '
    """
    if "tuned_stiffest_curvature" not in attributes:
        return []
    ways = []
    stiffest = float(nanmax(attributes["tuned_stiffest_curvature"]))
    noise = float(nanmax(attributes["tuned_gradient_noise"]))
    costs = 1 + noise / (stiffest * attributes["temperature"])
    if isfinite(costs) and costs > NOISE_COSTS:
        cancel = (
            "gradient='control_variate' cancels most of it where there are many more data than "
            "parameters, larger minibatches some"
            if _has_control_variates(attributes)
            else "larger minibatches cancel some of it"
        )
        ways.append(
            f"minibatch noise makes the step {costs:.0f} times smaller: {cancel}, and all the "
            "data in every step, where they fit, all of it"
        )
    condition = stiffest / float(nanmax(attributes["tuned_slowest_curvature"]))
    if condition > CONDITION_COSTS and has_dense_metric(attributes):
        ways.append(
            f"curvatures differ {condition:.0f} times between directions: metric='dense' evens "
            "them out"
        )
    return ways


def quieter(attributes: Attributes) -> str:
    """Write how to make the gradient less noisy; "" for a run that takes all the data.

    Example:
        >>> quieter({"batch_size": 32, "num_data": 1000, "localization": 1.0})
        'raise batch_size'
        >>> quieter({"batch_size": 1000, "num_data": 1000, "localization": 1.0})
        ''
    """
    size = batch_argument(attributes)
    if not size:
        return ""
    also = ", or take gradient='control_variate'" if _has_control_variates(attributes) else ""
    return f"raise {size}{also}"


def batch_argument(attributes: Attributes) -> str:
    """Name what sets the size of a run's minibatches; "" where it has none."""
    if "batch_size" in attributes:  # of an estimate
        return "batch_size" if attributes["batch_size"] < attributes["num_data"] else ""
    if attributes.get("gradient") == "full_data":
        return ""
    plates = json.loads(attributes.get("minibatches_of", '{"data": []}'))
    return "the DataLoader's batch_size" if LOADER in plates else "subsample_size" * bool(plates)


LOADER = "DataLoader"  # among `minibatches_of`, in place of a plate's name


def has_dense_metric(attributes: Attributes) -> bool:
    """Return whether the run could have had a dense metric, and has not."""
    if "localization" in attributes or attributes.get("metric") != "identity":
        return False
    if "sites" not in attributes:  # of draws that others wrote
        return False
    sizes = (prod(shape) for shape in json.loads(attributes["sites"]).values())
    return bool(1 < sum(sizes) <= MOST_PARAMETERS)


def _has_control_variates(attributes: Attributes) -> bool:
    """Return whether the run could have cancelled gradient noise by control variates."""
    return (
        "localization" not in attributes
        and attributes.get("gradient") == "minibatch"
        and batch_argument(attributes) == "subsample_size"
    )
