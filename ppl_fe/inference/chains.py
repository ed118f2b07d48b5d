"""Several chains of one sampler on one density, advanced together by one compiled step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_fe.inference.compile import CompileMode, TensorFunction, build
from ppl_fe.inference.density import Density, Indices
from ppl_fe.inference.dynamics import Dynamics
from ppl_fe.inference.gradients import Estimator, Evaluation
from ppl_fe.inference.streams import RandomStream


class Statistics(NamedTuple):
    """One step's by-products, (C,) each, at the position the step started from."""

    log_density: Tensor
    log_likelihood: Tensor
    gradient_norm: Tensor


class Chains:
    """The state of C chains and the step that moves them.

    Args:
        density: the target.
        dynamics: the sampler.
        estimator: of the gradient.
        position: (C, D) starts.
        settings: "step_size", "temperature" and the sampler's own, each (C, 1); changed in place
            by whoever tunes them, since they are inputs of the compiled step.
        seed: of noise and minibatches.
        compile: how to run the step; "auto" weighs the cost of compiling against `num_steps`.
        batches: an endless iterator of data tensors (C, B, ...) for data that do not fit in memory.
    """

    def __init__(
        self,
        density: Density,
        dynamics: Dynamics,
        estimator: Estimator,
        position: Tensor,
        settings: dict[str, Tensor],
        *,
        seed: int,
        num_steps: int,
        compile: CompileMode = "auto",
        batches: Iterator[tuple[Tensor, ...]] | None = None,
    ) -> None:
        self.density, self.settings = density, settings
        self.num_chains = len(position)
        self.stream = RandomStream(density, self.num_chains, seed)
        self.dynamics = dynamics
        self.start_at(position)
        self.log_likelihood_sum = position.new_zeros(self.num_chains)
        self._estimator, self._num_steps = estimator, num_steps
        self._batches, self._tensors = batches, density.tensors
        if batches is not None:
            self._tensors = next(batches)
        self._evaluate: TensorFunction | None = None
        arguments = self._arguments(torch.zeros_like(position), self.stream.indices())
        function = _flat_step(density, dynamics, estimator, self.state, tuple(settings))
        self._step, self.compile_mode = build(function, arguments, compile, num_steps)

    def start_at(self, position: Tensor) -> None:
        """Put the chains at positions (C, D), with whatever else their state holds drawn anew."""
        noise, _ = self.stream.next()
        self.state = self.dynamics.init(position.clone(), noise.clone(), self.settings)

    def advance(self) -> Statistics:
        """One step of every chain."""
        noise, indices = self.stream.next()
        if self._batches is not None:
            self._tensors = next(self._batches)
        with torch.no_grad():
            *state, total, log_density, log_likelihood, norm = self._step(
                *self._arguments(noise, indices)
            )
        self.state = type(self.state)(*state)
        self.log_likelihood_sum = total
        return Statistics(log_density, log_likelihood, norm)

    def take_mean_loss(self, num_steps: int) -> Tensor:
        """Mean of −log-likelihood/n (C,) over the steps since the last call; n = `num_data`."""
        mean = -self.log_likelihood_sum / (num_steps * self.density.num_data)
        self.log_likelihood_sum = torch.zeros_like(self.log_likelihood_sum)
        return mean

    def evaluate(self, position: Tensor, indices: Indices) -> Evaluation:
        """The gradient estimate at positions (C, D) for given index sets, apart from the chains."""
        arguments = [position, *indices, *self.density.chain_values, *self._tensors]
        if self._evaluate is None:
            mode: CompileMode = "eager" if self.compile_mode == "eager" else "traced"
            function = _flat_evaluation(self.density, self._estimator)
            self._evaluate, _ = build(function, arguments, mode, self._num_steps)
        with torch.no_grad():
            return Evaluation(*self._evaluate(*arguments))

    @property
    def has_gradient_noise(self) -> bool:
        """Whether minibatches make the gradient random."""
        return self._batches is not None or bool(self.density.subsamples)

    def fresh_gradient(self) -> Tensor:
        """The gradient estimate (C, D) at the present positions on a minibatch of its own."""
        if self._batches is not None:
            self._tensors = next(self._batches)
        return self.evaluate(self.state.position, self.stream.indices()).gradient

    def _arguments(self, noise: Tensor, indices: Indices) -> list[Tensor]:
        return [
            *self.state,
            self.log_likelihood_sum,
            noise,
            *self.settings.values(),
            *indices,
            *self.density.chain_values,
            *self._tensors,
        ]


def _flat_step(
    density: Density,
    dynamics: Dynamics,
    estimator: Estimator,
    state: Any,
    setting_names: Sequence[str],
) -> Callable[..., list[Tensor]]:
    """The step as a function of tensors alone, in the order of `Chains._arguments`."""
    make_state, width = type(state), len(state)
    counts = (len(setting_names), len(density.subsamples), len(density.chain_kwargs))

    def step(*arguments: Tensor) -> list[Tensor]:
        current = make_state(*arguments[:width])
        total, noise, *rest = arguments[width:]
        values, indices, chain_values, tensors = _cut(rest, counts)
        at = estimator(current.position, indices, chain_values, tensors)
        settings = dict(zip(setting_names, values, strict=True))
        new = dynamics.step(current, at.gradient, noise, settings)
        norm = torch.linalg.vector_norm(at.gradient, dim=-1)
        return [*new, total + at.log_likelihood, at.log_density, at.log_likelihood, norm]

    return step


def _flat_evaluation(density: Density, estimator: Estimator) -> Callable[..., list[Tensor]]:
    counts = (len(density.subsamples), len(density.chain_kwargs))

    def evaluate(position: Tensor, *rest: Tensor) -> list[Tensor]:
        indices, chain_values, tensors = _cut(rest, counts)
        return [*estimator(position, indices, chain_values, tensors)]

    return evaluate


def _cut(values: Sequence[Tensor], counts: Sequence[int]) -> list[tuple[Tensor, ...]]:
    """Consecutive groups of the given sizes, and what is left."""
    groups, start = [], 0
    for count in counts:
        groups.append(tuple(values[start : start + count]))
        start += count
    return [*groups, tuple(values[start:])]
