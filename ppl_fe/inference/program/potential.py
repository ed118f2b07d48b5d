"""A potential energy of unconstrained values as a Pyro program, as Pyro's own kernels take one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor

Potential = Callable[[Mapping[str, Tensor]], Any]


class PotentialProgram:
    """The density p(z) ∝ exp(−U(z)): flat sites, and the potential as a factor.

    Args:
        potential: U, site -> unconstrained value to a scalar, as
            `pyro.infer.mcmc.util.initialize_model` makes it.

    Example:
        >>> import torch
        >>> program = PotentialProgram(lambda z: z["x"].square().sum() / 2)
        >>> poutine.trace(poutine.condition(program, {"x": torch.ones(3)})).get_trace(
        ...     {"x": torch.zeros(3)}).log_prob_sum()
        tensor(-1.5000)
    """

    def __init__(self, potential: Potential) -> None:
        self.potential = potential
        self.__name__ = getattr(potential, "__name__", type(potential).__name__)

    def __call__(self, start: Mapping[str, Tensor]) -> None:
        """Sample the sites, each of the shape of its value in `start`."""
        values = {
            name: pyro.sample(name, dist.ImproperUniform(constraints.real, (), value.shape))
            for name, value in start.items()
        }
        with poutine.block():  # a potential may run a program of its own
            energy = self.potential(values)
        pyro.factor("potential energy", -energy)


def potential_arguments(
    given: tuple[Any, ...], start: Mapping[str, Tensor] | None
) -> tuple[Mapping[str, Tensor]]:
    """Give the argument that a `PotentialProgram` is called with: where a chain starts.

    Args:
        given: arguments of the run, of which there must be none.
        start: site -> unconstrained value of a chain, or None if no start was given.

    Raises:
        TypeError: arguments.
        ValueError: no start.
    """
    if given:
        raise TypeError("potential_fn takes the sites' values alone: give no further arguments")
    if start is None:
        raise ValueError(
            "potential_fn needs initial_params, site -> unconstrained values with a leading chain "
            "dimension: they give its sites their shapes"
        )
    return (dict(start),)
