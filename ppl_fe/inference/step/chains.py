"""Several chains of one sampler on one density, advanced together by one compiled step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ppl_fe.inference.dynamics import Dynamics, WithMomentum
from ppl_fe.inference.program.density import Blocks, Data, Density, Indices, merge_blocks
from ppl_fe.inference.step.builder import Builder
from ppl_fe.inference.step.compile import CompileMode, TensorFunction, apart
from ppl_fe.inference.step.dense_metric import LinearMap
from ppl_fe.inference.step.gradients import Anchor, Batch, Estimator, Evaluation, exact_evaluation
from ppl_fe.inference.step.random_stream import RandomStream, shapes
from ppl_fe.inference.step.step_function import (
    Fixed,
    Inputs,
    Statistics,
    Totals,
    flat_evaluation,
    flat_step,
)
from ppl_fe.inference.step.unrolled import warn_of_unrolled_loop
from ppl_fe.ranks import take_from_first


class Sampler(NamedTuple):
    """What moves chains.

    Args:
        dynamics: the sampler's step.
        estimator: of the gradient.
        settings: "step_size", "temperature" and the sampler's own, each (C, 1); changed in place
            by whoever tunes them, since they are inputs of the compiled step.
        gradient: the estimator's name.
    """

    dynamics: Dynamics
    estimator: Estimator
    settings: dict[str, Tensor]
    gradient: str


class Start(NamedTuple):
    """Where chains start.

    Args:
        position: (C, D).
        anchor: (C, D), where control variates are taken, until `set_anchor` moves it; by default
            there are none.
        near_mode: the positions are near a mode, with nothing to descend first. Default False.
        metric: a dense metric, which `set_metric` changes; none by default.
    """

    position: Tensor
    anchor: Tensor | None = None
    near_mode: bool = False
    metric: LinearMap | None = None


class Chains:
    """Hold the state of C chains, and move it step by step.

    Positions are given and asked for in the program's unconstrained coordinates w; `state` and
    `evaluate` are in the chains' own, which differ where there is a dense metric.

    Args:
        density: the target.
        sampler: what moves the chains.
        start: where they start.
        stream: of noise and minibatches. Where a loader's batches differ in shape from chain to
            chain or from step to step, those steps are run eagerly, as they come.
        builder: how the step is built.
        blocks: names of consecutive runs of coordinates, for temperatures and failures; by default
            the sites.

    Attributes:
        start: (C, D), where the chains started.
        near_mode: whether that was near a mode.
        num_evaluations: of the gradient, so far, elsewhere than in steps.
    """

    def __init__(
        self,
        density: Density,
        sampler: Sampler,
        start: Start,
        stream: RandomStream,
        *,
        builder: Builder,
        blocks: Blocks | None = None,
    ) -> None:
        data = density.tensors if stream.batches is None else next(stream.batches)
        if isinstance(data, list):
            builder = builder._replace(mode="eager")
            density = density.run_as(density.way._replace(vectorized=False, traceable=False))
        self.density, self.stream, self._sampler = density, stream, sampler
        self._builder = builder
        self.start, self.near_mode = start.position.contiguous().clone(), start.near_mode
        self.blocks = merge_blocks(blocks or density.blocks)
        metric, anchor = start.metric, start.anchor
        take_from_first(self.start, *(metric or ()))
        own = self.start if metric is None else metric.from_position(self.start).contiguous()
        self._fixed = Fixed(
            own.clone(),
            torch.zeros_like(own),
            () if anchor is None else Anchor(anchor.clone(), *exact_evaluation(density, anchor)),
            metric or (),
        )
        take_from_first(*(self._fixed.anchor or ()))
        noise, indices = stream.next()
        state = self.dynamics.init(own.clone(), noise.clone(), self.settings)
        inputs = Inputs(
            state,
            Totals.zero(own, len(self.blocks)),
            noise,
            indices,
            self.settings,
            density.chain_values,
            data,
            self._fixed,
            tuple(torch.empty_like(tensor) for tensor in state),
        )
        # The leaves in order, overwritten from step to step: flattening anew would cost as much
        # as a small step itself.
        self._leaves, self._structure = pytree.tree_flatten(inputs)
        self._slots, self._state_type = inputs.slots(), type(state)
        function = flat_step(self.dynamics, self.estimator, self.blocks, self._structure)
        if builder.mode != "eager":
            warn_of_unrolled_loop(density, self.start[0])
        self._built = builder.step(function, self._leaves, read_constants=density.way.vectorized)
        # Building took steps, and they were added up.
        self._leaves[self._slots.totals] = Totals.zero(own, len(self.blocks))
        self._evaluate: TensorFunction | None = None
        self.num_evaluations = 0

    @property
    def compile_mode(self) -> CompileMode:
        """What "auto" came to, so far."""
        return self._built.mode

    def expect(self, num_steps: float) -> None:
        """Compile the step, where so many that are still to come make that pay."""
        totals = [total.clone() for total in self.totals]
        self._built = self._built.for_calls(num_steps, lambda: self._leaves)
        self._leaves[self._slots.totals] = totals  # without the steps that building took

    @property
    def dynamics(self) -> Dynamics:
        """The sampler's step."""
        return self._sampler.dynamics

    @property
    def gradient(self) -> str:
        """The name of its estimator of the gradient."""
        return self._sampler.gradient

    @property
    def estimator(self) -> Estimator:
        """The estimator itself; without an anchor it makes no use of control variates."""
        return self._sampler.estimator

    @property
    def settings(self) -> dict[str, Tensor]:
        """Those of the sampler, (C, 1) each, to be changed in place."""
        return self._sampler.settings

    @property
    def num_chains(self) -> int:
        """C."""
        return len(self.start)

    @property
    def anchor(self) -> Anchor | None:
        """Where control variates are taken, if there are any."""
        return self._fixed.anchor or None

    @property
    def metric(self) -> LinearMap | None:
        """The map from the chains' own coordinates to positions, if they differ."""
        return self._fixed.metric or None

    @property
    def state(self) -> Any:
        """The sampler's state, its position in the chains' own coordinates."""
        return self._state_type(*self._leaves[self._slots.state])

    @state.setter
    def state(self, state: Any) -> None:
        self._leaves[self._slots.state] = [*state]

    @property
    def totals(self) -> Totals:
        """Sums over the steps since `take_means`, and when each chain failed."""
        return Totals(*self._leaves[self._slots.totals])

    @property
    def position(self) -> Tensor:
        """The chains' positions (C, D) on the program's unconstrained space."""
        own: Tensor = self._leaves[0]  # what a state begins with
        metric = self._fixed.metric
        return metric.to_position(own) if metric else own

    def start_at(self, position: Tensor) -> None:
        """Put the chains at positions (C, D), and draw the rest of their state again."""
        self.start = position.clone()
        self._put(position)

    def _put(self, position: Tensor) -> None:
        own = position if self.metric is None else self.metric.from_position(position)
        own = own.contiguous()  # as the step was compiled to read it
        noise, _ = self.stream.next()
        state = self.dynamics.init(own.clone(), noise.clone(), self.settings)
        self._leaves[self._slots.state] = [*state]

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
        take_from_first(*self.anchor)

    def measure_temperature(self, center: Tensor, direction: Tensor) -> None:
        """Measure temperatures about a centre and along a direction from now on.

        Args:
            center: (C, D), in the chains' own coordinates.
            direction: (C, D), likewise, of any length.
        """
        self._fixed.center.copy_(center)
        norm = torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
        self._fixed.direction.copy_(direction / norm.clamp_min(torch.finfo(norm.dtype).tiny))

    def advance(self) -> Statistics:
        """Take one step of every chain; call it under `torch.no_grad()`.

        Tensors of the state before it stay as they are until the step after this one.

        Returns:
            By-products at the positions that the step started from.
        """
        leaves, slots, stream = self._leaves, self._slots, self.stream
        noise, indices = stream.next()
        leaves[slots.noise] = (noise,)
        if indices:
            leaves[slots.indices] = indices
        step, given = self._built.run, leaves
        if stream.batches is not None:
            data = next(stream.batches)
            if self._fits(data):
                leaves[slots.tensors] = data
            else:
                step, given = self._step_on(data)
        written = step(*given)
        state, spare = slots.state, slots.spare
        leaves[state], leaves[spare] = leaves[spare], leaves[state]
        return Statistics(*written)

    @property
    def _data(self) -> Data:
        """The program's tensors: all of them, or a loader's last minibatches."""
        batches = self.stream.batches
        return self.density.tensors if batches is None else batches.current

    def _fits(self, data: Data) -> bool:
        """Return whether tensors are of the shapes that the step was built for."""
        built = self._leaves[self._slots.tensors]
        return not isinstance(data, list) and shapes(data) == shapes(built)

    def _step_on(self, data: Data) -> tuple[TensorFunction, list[Tensor]]:
        """Make the step for data of other shapes than it was built for, and its leaves."""
        given: Inputs = pytree.tree_unflatten(self._leaves, self._structure)
        leaves, structure = pytree.tree_flatten(given._replace(tensors=data))
        return flat_step(*self._sampler[:2], self.blocks, structure), leaves

    def take_means(self, num_steps: int) -> tuple[Tensor, Tensor]:
        """Take means over the steps since the last call, and begin new ones.

        Args:
            num_steps: how many these were.

        Returns:
            The loss −log-likelihood/n (C,) with n = `num_data`, in nats; and for the L blocks and
            the stiffest direction the temperature times its number of coordinates (C, L + 1).
        """
        totals = self.totals
        loss = -totals.log_likelihood / (num_steps * self.density.num_data)
        temperatures = totals.virials / num_steps
        for total in (totals.log_likelihood, totals.virials):
            total.zero_()
        return loss, temperatures

    def evaluate(self, position: Tensor, indices: Indices) -> Evaluation:
        """Estimate the gradient elsewhere than at the chains.

        Args:
            position: (C, D), in the chains' own coordinates.
            indices: of the minibatches, (C, B) for each plate that subsamples.

        Returns:
            The estimate, with the gradient in the chains' own coordinates.
        """
        self.num_evaluations += 1
        batch = Batch(indices, self.density.chain_values, self._data)
        inputs = (position.contiguous(), batch, self._fixed)  # as it is compiled to be read
        leaves, structure = pytree.tree_flatten(inputs)
        function = flat_evaluation(self.estimator, structure)
        if self._fits(self._data):
            if self._evaluate is None:
                vectorized = self.density.way.vectorized
                built = self._builder.gradient(function, apart(leaves), read_constants=vectorized)
                self._evaluate = built.run
            function = self._evaluate
        with torch.no_grad():
            return Evaluation(*function(*leaves))

    @property
    def has_gradient_noise(self) -> bool:
        """Whether minibatches make the gradient random."""
        return self.stream.batches is not None or bool(self.density.subsamples)

    def fresh_gradient(self) -> Tensor:
        """Estimate the gradient (C, D) at the present positions on minibatches of no step."""
        if self.stream.batches is not None:
            next(self.stream.batches)
        return self.evaluate(self._leaves[0], self.stream.indices()).gradient

    @cached_property
    def _momenta(self) -> WithMomentum | None:
        # Asked once: to compare with a protocol costs as much as a small step.
        return self.dynamics if isinstance(self.dynamics, WithMomentum) else None

    def take_own_statistics(self, num_steps: int) -> tuple[Tensor, ...]:
        """Measure what the kernel's `own_statistics` name, (C,) each, at the end of a draw.

        Args:
            num_steps: of the draw, over which other samplers average.
        """
        if self._momenta is None:
            return ()
        return (self._momenta.kinetic_temperature(self.state, self.settings),)

    @property
    def num_gradients(self) -> int:
        """Count the gradients of each chain so far, by which curvatures are found among them."""
        return int(self.totals.num_steps[0]) + self.num_evaluations

    def left(self) -> list[Tensor]:
        """Give what others go on from: state, settings and what is held fixed."""
        slots = self._slots
        return [
            self._leaves[place]
            for slot in (slots.state, slots.settings, slots.fixed)
            for place in range(slot.start, slot.stop)
        ]

    def go_on_from(self, left: Sequence[Tensor], chains: Sequence[int]) -> None:
        """Go on where some chains of others are, with their settings, by noise of one's own."""
        for own, other in zip(self.left(), left, strict=True):
            own.copy_(other[[*chains]])

    def state_dict(self) -> dict[str, Tensor]:
        """Give all that changes in a run, stream included; see `load_state_dict`."""
        stream = {f"stream/{name}": value for name, value in self.stream.state().items()}
        own = {f"chains/{k}": self._leaves[k] for k in self._changing()}
        return {**own, "evaluations": torch.tensor(self.num_evaluations), **stream}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on exactly from a `state_dict`."""
        for place in self._changing():
            self._leaves[place].copy_(state[f"chains/{place}"])
        self.num_evaluations = int(state.get("evaluations", 0))
        prefix = "stream/"
        self.stream.restore(
            {name[len(prefix) :]: v for name, v in state.items() if name.startswith(prefix)}
        )

    def _changing(self) -> list[int]:
        """The places of the leaves that a run changes, other than what the stream gives."""
        slots = self._slots
        changing = (slots.state, slots.totals, slots.settings, slots.fixed)
        return [place for slot in changing for place in range(slot.start, slot.stop)]
