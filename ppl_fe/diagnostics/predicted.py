"""The effective temperature that a sampler predicts of itself, at steps other than its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_fe.inference import samplers
from ppl_fe.inference.dynamics import Measured
from ppl_fe.inference.kernels import Kernel

Array = NDArray[np.float64]


def predicted_temperature(attributes: Mapping[Any, Any], step_sizes: Array) -> Array:
    """T_eff along the stiffest direction at each step (G,) by the sampler's own formula.

    From the curvature and gradient noise that the warm-up of a run with automatic settings met;
    `Dynamics.excess_temperature` has the formula. A friction that was automatic is chosen anew for
    every step, as a run at that step would choose it.

    Args:
        attributes: of the run's draws.
        step_sizes: ε.

    Returns:
        (G,), infinite where the step is unstable.

    Raises:
        ValueError: a sampler of one's own, or a run that measured no curvature.

    Example:
        >>> facts = {"sampler": "SGLD", "temperature": 1.0, "tolerance": 0.05,
        ...          "tuned_stiffest_curvature": [4.0], "tuned_gradient_noise": [0.0]}
        >>> predicted_temperature(facts, np.array([0.5, 1.0])).tolist()    # 1/(1 − ε) below 1
        [2.0, inf]
    """
    name = attributes.get("sampler")
    kernel = getattr(samplers, str(name), None)
    if not (isinstance(kernel, type) and issubclass(kernel, Kernel)):
        raise ValueError(f"the sampler {name} is none of fe's: its temperature is not predicted")
    if "tuned_stiffest_curvature" not in attributes:
        raise ValueError("this run measured no curvature; it needs step_size='auto'")

    def column(value: float) -> Tensor:
        return torch.full((len(step_sizes), 1), value, dtype=torch.float64)

    def met(what: str) -> Tensor:
        return column(float(np.nanmax(attributes[f"tuned_{what}"])))

    dynamics, temperature = kernel.dynamics, column(float(attributes["temperature"]))
    curvature, noise = met("stiffest_curvature"), met("gradient_noise")
    step_size = torch.as_tensor(step_sizes, dtype=torch.float64)[:, None]
    settings = {"step_size": step_size, "temperature": temperature}
    given = {own: attributes[own] for own in dynamics.hyperparameters}
    if "auto" in given.values():
        found = Measured(curvature, met("slowest_curvature"), noise, temperature)
        settings |= dynamics.tune(found, float(attributes["tolerance"]), step_size)
    settings |= {own: column(float(value)) for own, value in given.items() if value != "auto"}
    excess = dynamics.excess_temperature(curvature, noise, settings)
    return np.asarray((temperature * (1 + excess))[:, 0])
