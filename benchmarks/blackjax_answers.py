"""The ten posteriors by blackjax's Metropolis-adjusted microcanonical sampler, for `answers.py`.

As its sampling book runs it: trajectories of random length, two steps on average, step size and
diagonal metric by `adjusted_mclmc_find_L_and_step_size` at its defaults and a target of 0.9, from a
start that NumPyro makes. A chain has 2000 trajectories (doubled until the ESS is there), after a
fifth as many for tuning. The four run one after the other, as a vectorised step waits for the
longest trajectory of all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import numpyro
from blackjax import adjusted_mclmc_dynamic, adjusted_mclmc_find_L_and_step_size
from blackjax.mcmc.adjusted_mclmc_dynamic import make_random_trajectory_length_fn

TRAJECTORIES, KEPT = 2000, 1000  # of a chain, and how many of their ends, evenly
TARGET = 0.9


def sampler(program: Callable[..., Any], arguments: list[Any]) -> Callable[[int, int], Any]:
    """Make (seed, how many times longer) -> draws (4, S, ...), compiled once a length."""
    lengths = make_random_trajectory_length_fn(True)
    kernel = adjusted_mclmc_dynamic.build_kernel(integration_steps_fn=lengths)

    @partial(jax.jit, static_argnums=1)
    def chain(key: Any, factor: int) -> Any:
        init, tune, run = jax.random.split(key, 3)
        model = numpyro.infer.util.initialize_model(init, program, model_args=tuple(arguments))

        def log_density(z: Any) -> Any:
            return -model.potential_fn(z)

        start = adjusted_mclmc_dynamic.init(model.param_info.z, log_density, init)
        state, found, _ = adjusted_mclmc_find_L_and_step_size(
            kernel, log_density, TRAJECTORIES * factor, start, tune, TARGET
        )
        settings = {
            "step_size": found.step_size,
            "inverse_mass_matrix": found.inverse_mass_matrix,
            "integration_steps_params": (found.L / found.step_size,),
        }

        def step(state: Any, key: Any) -> Any:
            return kernel(key, state, log_density, **settings)[0], None

        def kept(state: Any, keys: Any) -> Any:
            state, _ = jax.lax.scan(step, state, keys)
            return state, model.postprocess_fn(state.position)

        keys = jax.random.split(run, TRAJECTORIES * factor)
        return jax.lax.scan(kept, state, keys.reshape(KEPT, -1, *keys.shape[1:]))[1]

    def draws(seed: int, factor: int) -> dict[str, Any]:
        found = [chain(key, factor) for key in jax.random.split(jax.random.PRNGKey(seed), 4)]
        return {k: np.stack([np.asarray(one[k]) for one in found]) for k in found[0]}

    return draws
