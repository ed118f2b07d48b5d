"""The rows of `step.py`: the same posterior sampled by this library and by its peers.

Every row draws a minibatch and Gaussian noise of its own for each step of each chain, from the
same data at the same step size; peers are imported when their row is built.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.func import functional_call

from ppl_fe import models
from ppl_fe.inference.samplers import SGLD
from ppl_fe.inference.sampling import sample
from ppl_fe.inference.step.compile import CompileMode
from ppl_fe.networks.flat import FlatNetwork

N, BATCH, CLASSES, WIDTH = 10_000, 256, 10, 64
LOCALIZATION, BETA, EPSILON = 1.0, 1 / math.log(N), 1e-6
THINNING = 10  # as in the free-energy estimate

# num_steps -> (seconds taken by all chains, their final positions).
Run = Callable[[int], tuple[float, list[Tensor]]]
# One chain: its step, and its present position.
Chain = tuple[Callable[[], None], Callable[[], Tensor]]


class Row(NamedTuple):
    """An implementation: its label, the packages it needs, num_chains -> Run."""

    label: str
    needs: tuple[str, ...]
    make: Callable[[int], Run]
    only_chains: int | None = None


torch.manual_seed(0)
x, y = torch.randn(N, WIDTH), torch.randint(CLASSES, (N,))
module = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))
network = FlatNetwork(module)
posterior = models.local_posterior(network, "categorical", LOCALIZATION, batch_size=BATCH)


def minibatch() -> tuple[Tensor, Tensor]:
    indices = torch.randint(N, (BATCH,))
    return x[indices], y[indices]


def vector(parameters: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in parameters])


def one_after_another(start: Callable[[], Chain]) -> Callable[[int], Run]:
    """Chains that know nothing of each other: `start` gives one's step and its position."""

    def make(num_chains: int) -> Run:
        chains = [start() for _ in range(num_chains)]

        def run(num_steps: int) -> tuple[float, list[Tensor]]:
            began = time.perf_counter()
            for step, _ in chains:
                for _ in range(num_steps):
                    step()
            return time.perf_counter() - began, [position() for _, position in chains]

        return run

    return make


def ppl_fe_network(num_chains: int) -> Run:
    start = {"w": network.anchor.expand(num_chains, -1)}
    return ppl_fe_run(posterior, (x, y), num_chains, "compiled", start)


def ppl_fe_run(model: Any, data: Any, num_chains: int, mode: CompileMode, start: Any = None) -> Run:
    """`fe.sample` as a user calls it, by the sampling time it reports, which leaves set-up out."""

    def run(num_steps: int) -> tuple[float, list[Tensor]]:
        draws = sample(
            SGLD(model, step_size=EPSILON),
            *data,
            num_samples=num_steps // THINNING,
            warmup_steps=0,
            thinning=THINNING,
            num_chains=num_chains,
            initial_params=start,
            compile=mode,
            progress_bar=False,
        )
        if draws.attrs["compile"] != mode:
            raise RuntimeError(f"asked for compile={mode!r}, ran {draws.attrs['compile']!r}")
        last = draws["posterior"].dataset.isel(draw=-1)
        positions = [torch.as_tensor(last[name].values) for name in last.data_vars]
        return draws.attrs["sampling_time"], positions

    return run


def plain_sgd() -> Chain:
    net = copy.deepcopy(module)
    return optimiser_chain(net, torch.optim.SGD(net.parameters(), lr=1e-3))


def devinterp() -> Chain:
    net = copy.deepcopy(module)
    with warnings.catch_warnings():
        # Deprecated in favour of SGMCMC.sgld, yet what its own sampler uses, and the quicker.
        warnings.simplefilter("ignore", DeprecationWarning)
        sgld = import_module("devinterp.optim").SGLD(
            net.parameters(), lr=EPSILON, localization=LOCALIZATION, nbeta=N * BETA
        )
    return optimiser_chain(net, sgld)


def optimiser_chain(net: nn.Module, optimiser: Any) -> Chain:
    def step() -> None:
        inputs, targets = minibatch()
        optimiser.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(net(inputs), targets))
        optimiser.step()

    return step, lambda: vector(net.parameters())


def posteriors() -> Chain:
    anchor = {name: p.detach().clone() for name, p in module.named_parameters()}

    def log_posterior(params: Any, batch: Any) -> tuple[Tensor, Tensor]:
        output = functional_call(module, params, (batch[0],))
        loss = nn.functional.cross_entropy(output, batch[1])
        distance = sum(((p - anchor[name]) ** 2).sum() for name, p in params.items())
        return -N * BETA * loss - LOCALIZATION / 2 * distance, output

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of tensordict, about its own state classes
        sgld = import_module("posteriors").sgmcmc.sgld
    # Its lr multiplies the whole gradient: half of our ε.
    transform = sgld.build(log_posterior, lr=EPSILON / 2)
    state = transform.init({name: p.clone() for name, p in anchor.items()})

    def step() -> None:
        nonlocal state
        state, _ = transform.update(state, minibatch())

    return step, lambda: vector(state.params.values())


def pyro_eager() -> Chain:
    """Trace the program, sum its log-probabilities, differentiate; Pyro draws the minibatch."""
    position = network.anchor.clone().requires_grad_(True)

    def step() -> None:
        with pyro.validation_enabled(False):  # as pyro.infer.MCMC runs
            conditioned = poutine.condition(posterior, {"w": position})
            log_density = poutine.trace(conditioned).get_trace(x, y).log_prob_sum()
        (gradient,) = torch.autograd.grad(log_density, position)
        with torch.no_grad():
            noise = torch.randn_like(position)
            position.add_(EPSILON / 2 * gradient).add_(noise, alpha=EPSILON**0.5)

    return step, lambda: position.detach().clone()


def blackjax(num_chains: int) -> Run:
    jax, sgmcmc = import_module("jax"), import_module("blackjax")
    jnp = jax.numpy
    anchor = {name: jnp.asarray(p.detach().numpy()) for name, p in module.named_parameters()}
    data = (jnp.asarray(x.numpy()), jnp.asarray(y.numpy()))

    def log_prior(w: Any) -> Any:
        return -LOCALIZATION / 2 * sum(((w[k] - anchor[k]) ** 2).sum() for k in w)

    def log_likelihood(w: Any, datum: Any) -> Any:
        hidden = jax.nn.relu(w["0.weight"] @ datum[0] + w["0.bias"])
        logits = w["2.weight"] @ hidden + w["2.bias"]
        return BETA * jax.nn.log_softmax(logits)[datum[1]]

    sgld = sgmcmc.sgld(sgmcmc.sgmcmc.gradients.grad_estimator(log_prior, log_likelihood, N))

    def chain(key: Any, w: Any, data: Any, num_steps: int) -> Any:
        def step(w: Any, key: Any) -> tuple[Any, None]:
            draw, noise = jax.random.split(key)
            indices = jax.random.randint(draw, (BATCH,), 0, N)
            # Its step size multiplies the whole gradient: half of our ε.
            return sgld.step(noise, w, (data[0][indices], data[1][indices]), EPSILON / 2), None

        return jax.lax.scan(step, w, jax.random.split(key, num_steps))[0]

    many = {name: jnp.stack([value] * num_chains) for name, value in anchor.items()}
    keys = jax.random.split(jax.random.key(0), num_chains)

    @cache
    def compiled(num_steps: int) -> Any:
        batched = jax.vmap(lambda key, w, data: chain(key, w, data, num_steps), (0, 0, None))
        return jax.jit(batched).lower(keys, many, data).compile()

    def run(num_steps: int) -> tuple[float, list[Tensor]]:
        program = compiled(num_steps)
        began = time.perf_counter()
        final = jax.block_until_ready(program(keys, many, data))
        seconds = time.perf_counter() - began
        # jax hands dictionaries back in the order of their keys.
        flat = torch.cat([torch.tensor(final[k].tolist()).flatten(1) for k in anchor], 1)
        return seconds, list(flat)

    return run


def regression(design: Tensor, targets: Tensor) -> None:
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    w = pyro.sample("w", dist.Normal(torch.zeros(10), 1.0).to_event(1))
    with pyro.plate("data", N, subsample_size=100):
        inputs = pyro.subsample(design, event_dim=1)
        answers = pyro.subsample(targets, event_dim=0)
        pyro.sample("y", dist.Normal(inputs @ w, sigma), obs=answers)


def regression_row(mode: CompileMode) -> Row:
    design = torch.randn(N, 10)
    data = (design, design.sum(-1) + torch.randn(N))
    return Row(f"ppl-fe, {mode}", (), lambda chains: ppl_fe_run(regression, data, chains, mode), 4)


NETWORK_ROWS = (
    Row("ppl-fe", (), ppl_fe_network),
    Row("plain torch SGD", (), one_after_another(plain_sgd), 1),
    Row("devinterp", ("devinterp",), one_after_another(devinterp)),
    Row("posteriors", ("posteriors",), one_after_another(posteriors)),
    Row("Pyro, eager trace", (), one_after_another(pyro_eager)),
    Row("blackjax", ("blackjax", "jax"), blackjax),
)
REGRESSION_ROWS = (regression_row("eager"), regression_row("traced"), regression_row("compiled"))
