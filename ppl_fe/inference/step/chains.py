"""Several chains of one sampler on one density, advanced together by one compiled step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ppl_fe.inference.dynamics import Dynamics
from ppl_fe.inference.program.density import Blocks, Density, Indices, merge_blocks
from ppl_fe.inference.step.compile import CompileMode, TensorFunction, build
from ppl_fe.inference.step.dense_metric import LinearMap
from ppl_fe.inference.step.gradients import Anchor, Batch, Estimator, Evaluation, exact_evaluation
from ppl_fe.inference.step.random_stream import RandomStream
from ppl_fe.inference.step.step_function import (
    Fixed,
    Inputs,
    Statistics,
    Totals,
    flat_evaluation,
    flat_step,
)


class Chains:
    """The state of C chains and the step that moves them.

    Positions are given and asked for in the program's unconstrained coordinates w; `state` and
    `evaluate` speak of the chains' own, which differ where there is a dense metric.

    Args:
        density: the target.
        dynamics: the sampler.
        estimator: of the gradient.
        position: (C, D) starts.
        settings: "step_size", "temperature" and the sampler's own, each (C, 1); changed in place
            by whoever tunes them, since they are inputs of the compiled step.
        stream: of noise and minibatches.
        num_steps: expected; "auto" weighs the cost of compiling against it.
        compile: how to run the step.
        batches: an endless iterator of data tensors (C, B, ...) for data that do not fit in memory.
        blocks: names of consecutive runs of coordinates, for temperatures and failures; by default
            the sites.
        anchor: (C, D), where control variates are taken, until `set_anchor` moves it.
        near_mode: the chains start near a mode, with nothing to descend first.
        metric: a dense metric; changed by `set_metric`.

    Attributes:
        start: (C, D), where the chains started.
    """

    def __init__(
        self,
        density: Density,
        dynamics: Dynamics,
        estimator: Estimator,
        position: Tensor,
        settings: dict[str, Tensor],
        stream: RandomStream,
        *,
        num_steps: int,
        compile: CompileMode = "auto",
        batches: Iterator[tuple[Tensor, ...]] | None = None,
        blocks: Blocks | None = None,
        anchor: Tensor | None = None,
        near_mode: bool = False,
        metric: LinearMap | None = None,
    ) -> None:
        self.density, self.dynamics, self.settings = density, dynamics, settings
        self.stream, self.num_chains, self.metric = stream, len(position), metric
        self.near_mode = near_mode
        self.blocks = merge_blocks(blocks or density.blocks)
        self.anchor = (
            None if anchor is None else Anchor(anchor.clone(), *exact_evaluation(density, anchor))
        )
        self._batches, self._batches_taken = batches, 0
        self.start = position.clone()
        own = position if metric is None else metric.from_position(position)
        tensors = density.tensors if batches is None else self._next_batch()
        noise, indices = stream.next()
        self._fixed = Fixed(own.clone(), torch.zeros_like(own), self.anchor or (), metric or ())
        state = dynamics.init(own.clone(), noise.clone(), settings)
        inputs = Inputs(
            state,
            Totals.zero(own, len(self.blocks)),
            noise,
            indices,
            settings,
            density.chain_values,
            tensors,
            self._fixed,
            tuple(torch.empty_like(tensor) for tensor in state),
        )
        # The leaves in order, overwritten from step to step: flattening anew would cost as much
        # as a small step itself.
        self._leaves, structure = pytree.tree_flatten(inputs)
        self._state_type, self._width = type(state), len(state)
        self._num_written = len(state) + len(inputs.totals)
        self._noise_at = self._num_written
        self._tensors_at = self._noise_at + 1 + len(indices) + len(settings)
        self._tensors_at += len(density.chain_values)
        self._num_tensors = len(tensors)
        settings_at = self._noise_at + 1 + len(indices)
        self._spare_at = len(self._leaves) - len(state)
        self._kept = [
            *range(self._num_written),
            *range(settings_at, settings_at + len(settings)),
            *range(self._tensors_at + len(tensors), self._spare_at),
        ]
        function = flat_step(dynamics, estimator, self.blocks, structure)
        self._step, self.compile_mode = build(
            function, self._leaves, compile, num_steps, read_constants=density.vectorized
        )
        # Building took steps, and they were added up.
        self._leaves[self._width : self._num_written] = Totals.zero(own, len(self.blocks))
        self._estimator, self._num_steps = estimator, num_steps
        self._evaluate: TensorFunction | None = None

    @property
    def state(self) -> Any:
        """The sampler's state, its position in the chains' own coordinates."""
        return self._state_type(*self._leaves[: self._width])

    @state.setter
    def state(self, state: Any) -> None:
        self._leaves[: self._width] = [*state]

    @property
    def totals(self) -> Totals:
        """Sums over the steps since `take_means`, and when each chain failed."""
        return Totals(*self._leaves[self._width : self._num_written])

    @property
    def position(self) -> Tensor:
        """(C, D) on the program's unconstrained space."""
        own: Tensor = self._leaves[0]
        return own if self.metric is None else self.metric.to_position(own)

    def start_at(self, position: Tensor) -> None:
        """Put the chains at positions (C, D), with whatever else their state holds drawn anew."""
        self.start = position.clone()
        self._put(position)

    def _put(self, position: Tensor) -> None:
        own = position if self.metric is None else self.metric.from_position(position)
        noise, _ = self.stream.next()
        self.state = self.dynamics.init(own.clone(), noise.clone(), self.settings)

    def set_metric(self, metric: LinearMap) -> None:
        """Go on from the same positions in other coordinates."""
        assert self.metric is not None
        position = self.position
        for own, new in zip(self.metric, metric, strict=True):
            own.copy_(new)
        self._put(position)

    def set_anchor(self, position: Tensor) -> None:
        """Take control variates about positions (C, D) from now on."""
        assert self.anchor is not None
        values = (position, *exact_evaluation(self.density, position))
        for own, new in zip(self.anchor, values, strict=True):
            own.copy_(new)

    def measure_temperature(self, center: Tensor, direction: Tensor) -> None:
        """About `center` (C, D) and along `direction` (C, D), in the chains' coordinates."""
        self._fixed.center.copy_(center)
        norm = torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
        self._fixed.direction.copy_(direction / norm.clamp_min(torch.finfo(norm.dtype).tiny))

    def advance(self) -> Statistics:
        """One step of every chain; to be called under `torch.no_grad()`, as a loop of them is.

        Tensors of the state before it stay as they are until the step after this one.
        """
        leaves, at = self._leaves, self._noise_at
        noise, indices = self.stream.next()
        leaves[at] = noise
        if indices:
            leaves[at + 1 : at + 1 + len(indices)] = indices
        if self._batches is not None:
            leaves[self._tensors_at : self._tensors_at + self._num_tensors] = self._next_batch()
        written, spare = self._step(*leaves), self._spare_at
        leaves[: self._width], leaves[spare:] = leaves[spare:], leaves[: self._width]
        return Statistics(*written)

    def take_means(self, num_steps: int) -> tuple[Tensor, Tensor]:
        """Means over the `num_steps` steps since the last call: loss (C,), temperatures (C, L + 1).

        The loss is −log-likelihood/n with n = `num_data`; the last temperature is that along the
        stiffest direction.
        """
        totals = self.totals
        loss = -totals.log_likelihood / (num_steps * self.density.num_data)
        temperatures = totals.virials / num_steps
        for total in (totals.log_likelihood, totals.virials):
            total.zero_()
        return loss, temperatures

    def evaluate(self, position: Tensor, indices: Indices) -> Evaluation:
        """The gradient estimate at (C, D) in the chains' coordinates, apart from the chains."""
        at = self._tensors_at
        tensors = tuple(self._leaves[at : at + self._num_tensors])
        inputs = (position, Batch(indices, self.density.chain_values, tensors), self._fixed)
        leaves, structure = pytree.tree_flatten(inputs)
        if self._evaluate is None:
            mode: CompileMode = "eager" if self.compile_mode == "eager" else "traced"
            function = flat_evaluation(self._estimator, structure)
            self._evaluate, _ = build(
                function, leaves, mode, self._num_steps, read_constants=self.density.vectorized
            )
        with torch.no_grad():
            return Evaluation(*self._evaluate(*leaves))

    @property
    def has_gradient_noise(self) -> bool:
        """Whether minibatches make the gradient random."""
        return self._batches is not None or bool(self.density.subsamples)

    def fresh_gradient(self) -> Tensor:
        """The gradient estimate (C, D) at the present positions on a minibatch of its own."""
        if self._batches is not None:
            at = self._tensors_at
            self._leaves[at : at + self._num_tensors] = self._next_batch()
        return self.evaluate(self._leaves[0], self.stream.indices()).gradient

    def state_dict(self) -> dict[str, Tensor]:
        """All that changes in a run, stream included; `load_state_dict` goes on from it exactly."""
        stream = {f"stream/{name}": value for name, value in self.stream.state().items()}
        own = {f"chains/{place}": self._leaves[place] for place in self._kept}
        return {**own, **stream, "batches_taken": torch.tensor([self._batches_taken])}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state_dict`; batches of a loader up to it are drawn and left unused."""
        for place in self._kept:
            self._leaves[place].copy_(state[f"chains/{place}"])
        prefix = "stream/"
        self.stream.restore(
            {name[len(prefix) :]: v for name, v in state.items() if name.startswith(prefix)}
        )
        while self._batches_taken < int(state["batches_taken"]):
            self._next_batch()

    def _next_batch(self) -> tuple[Tensor, ...]:
        assert self._batches is not None
        self._batches_taken += 1
        return next(self._batches)
