"""Chains that move by Metropolis-adjusted trajectories, all in lockstep, by one graph a step."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from math import exp
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ppl_fe.inference.dynamics import malt
from ppl_fe.inference.program.density import Blocks, Density, merge_blocks
from ppl_fe.inference.step.builder import Builder
from ppl_fe.inference.step.compile import CompileMode, apart
from ppl_fe.inference.step.gradients import Estimator, full_data
from ppl_fe.inference.step.metric_factor import Metric, group_of, grouped, identity_factor
from ppl_fe.inference.step.random_stream import RandomStream
from ppl_fe.inference.step.step_function import Statistics, Totals
from ppl_fe.inference.step.temperature import block_virials
from ppl_fe.inference.step.unrolled import warn_of_unrolled_loop
from ppl_fe.inference.step.verlet import Inputs, verlet

MOST_STEPS = 256  # of a trajectory, however small the step


class Path(NamedTuple):
    """friction f and length T = h L of a trajectory, in whitened coordinates.

    scales: by which h is multiplied, one trajectory after the other, over and over. A shorter step
    is taken more often, to the same length; a longer one as often.
    """

    friction: float
    length: float
    scales: tuple[float, ...] = (1.0,)


class Thermometer(NamedTuple):
    """Where temperatures are measured: centre c, and a pair a, b with a·b = 1; (D,), or (C, D)
    where groups of chains have targets of their own.

    E[(a·(w − c)) (b·∇U)] = a·b in any units; a = F⁻ᵀe and b = Fe for a whitened direction e.
    """

    center: Tensor
    dual: Tensor
    direction: Tensor


class Left(NamedTuple):
    """What trajectories go on from; the fields are attributes of `Trajectories`."""

    steps: tuple[float, ...]
    factor: Metric
    state: malt.State
    thermometer: Thermometer


class Trajectories:
    """Hold the state of C chains, and move it trajectory by trajectory.

    It has the part of `Chains` that a run needs, with a trajectory for a step. Groups of chains
    with targets of their own have each a step size and a metric, and the number of steps of the one
    whose steps are shortest.

    Args:
        density: the target; plates that subsample are taken whole.
        position: (C, D), where the chains start.
        path: friction, length and scales of trajectories.
        seed: of velocities and acceptances.
        num_groups: equal consecutive groups of chains, 1 by default.
        builder: how a step is built.
        blocks: names of consecutive runs of coordinates, for temperatures; by default the sites.

    Attributes:
        state: at accepted positions.
        num_gradients: so far.
        acceptance: (C,), the chance with which the last trajectory of scale 1 was accepted.
        steps: h of each group, at scale 1.
        path: friction, length and scales of trajectories.
    """

    def __init__(
        self,
        density: Density,
        position: Tensor,
        *,
        path: Path,
        seed: int,
        builder: Builder,
        num_groups: int = 1,
        blocks: Blocks | None = None,
    ) -> None:
        self.density, self.num_gradients = density, 0
        self.path = path
        self.blocks = merge_blocks(blocks or density.blocks)
        self.stream = RandomStream(density, len(position), seed)
        self._uniform = torch.Generator(density.device).manual_seed(seed + 2**30)
        self.factor = grouped([identity_factor(position)] * num_groups)
        self.steps: tuple[float, ...] = (0.1,) * num_groups
        zeros = [torch.zeros_like(position[:, 0]) for _ in range(3)]
        self.state = malt.State(
            position.clone(), torch.zeros_like(position), torch.zeros_like(position), *zeros
        )
        self._build(full_data(density), builder)
        self.totals = Totals.zero(position, len(self.blocks))
        self.acceptance = torch.ones_like(zeros[0])
        self._ended = torch.stack(zeros[:2])  # sums over trajectories: acceptance, and divergences
        self._thermometer = Thermometer(*(torch.zeros_like(position[0]) for _ in range(3)))
        self.start_at(position)

    def _build(self, estimator: Estimator, builder: Builder) -> None:
        if builder.mode != "eager":
            warn_of_unrolled_loop(self.density, self.state.position[0])
        structure = pytree.tree_structure(self._inputs_at_rest())

        def function(*leaves: Tensor) -> list[Tensor]:
            return [*verlet(estimator, pytree.tree_unflatten(list(leaves), structure))]

        vectorized = self.density.way.vectorized
        self._built = builder.step(function, self._example(), read_constants=vectorized)

    @property
    def factor(self) -> Metric:
        """Of the metric, of all chains or of each group."""
        return self._factor

    @factor.setter
    def factor(self, factor: Metric) -> None:
        # As the step was compiled to read it: decompositions leave columns one after the other.
        self._factor: Metric = pytree.tree_map(Tensor.contiguous, factor)

    @property
    def compile_mode(self) -> CompileMode:
        """What "auto" came to, so far."""
        return self._built.mode

    def expect(self, num_trajectories: float) -> None:
        """Compile the step, where so many trajectories that are still to come make that pay."""
        num_calls = num_trajectories * self.mean_num_steps
        self._built = self._built.for_calls(num_calls, self._example)

    def _inputs_at_rest(self) -> Inputs:
        still = torch.zeros_like(self.state.position[:, :1])
        return self._inputs(self.state, self.state.velocity, still, still)

    def _example(self) -> list[Tensor]:
        return apart(pytree.tree_leaves(self._inputs_at_rest()))

    def _inputs(self, state: malt.State, noise: Tensor, h: Tensor, decay: Tensor) -> Inputs:
        return Inputs(
            state,
            noise,
            h,
            decay,
            self.factor,
            self.density.chain_values,
            self.density.tensors,
        )

    @property
    def num_chains(self) -> int:
        """C."""
        return len(self.state.position)

    @property
    def position(self) -> Tensor:
        """The accepted positions (C, D)."""
        return self.state.position

    @property
    def num_steps(self) -> int:
        """L, the steps of a trajectory of scale 1."""
        return self._num_steps(1.0)

    @property
    def mean_num_steps(self) -> float:
        """The steps of a trajectory, on average over its scales."""
        scales = self.path.scales
        return sum(map(self._num_steps, scales)) / len(scales)

    @property
    def scale(self) -> float:
        """By which the step of the last trajectory was multiplied."""
        return self._scale_of(self._count - 1)

    @property
    def _count(self) -> int:
        """The trajectories so far."""
        return int(self.totals.num_steps[0])

    def _scale_of(self, trajectory: int) -> float:
        return self.path.scales[trajectory % len(self.path.scales)]

    def _num_steps(self, scale: float) -> int:
        shortest = min(1.0, scale) * min(self.steps)
        return max(1, min(MOST_STEPS, round(self.path.length / shortest)))

    @property
    def num_groups(self) -> int:
        """G."""
        return len(self.steps)

    @property
    def settings(self) -> dict[str, Tensor]:
        """Settings (C, 1), as `Chains` has them."""
        values = {
            "step_size": [h**2 for h in self.steps],
            "friction": [self.path.friction for _ in self.steps],
            "trajectory_length": [h * self.num_steps for h in self.steps],
        }
        return {name: self._column(each) for name, each in values.items()}

    def _column(self, each: Sequence[float]) -> Tensor:
        """Give every chain (C, 1) the value of its group."""
        values = self.state.position.new_tensor(each)
        return values.repeat_interleave(self.num_chains // self.num_groups)[:, None]

    def groups(self, values: Tensor) -> tuple[Tensor, ...]:
        """Split values (C, ...) into those of each group."""
        return torch.split(values, self.num_chains // self.num_groups)

    def evaluate(self, position: Tensor) -> malt.State:
        """Evaluate positions (C, D): the state of chains at rest there."""
        position = position.contiguous()  # as in `factor`
        rest = self.state._replace(position=position, velocity=torch.zeros_like(position))
        still = torch.zeros_like(position[:, :1])
        at = self._move(rest, rest.velocity, still, still)
        return at._replace(velocity=rest.velocity, energy_error=torch.zeros_like(at.log_density))

    def seconds_of_a_gradient(self) -> float:
        """Time one gradient of all chains where they are, which the run does not count."""
        counted, begun = self.num_gradients, time.perf_counter()
        self.evaluate(self.position).log_density.sum().item()  # which waits for it
        self.num_gradients = counted
        return time.perf_counter() - begun

    def start_at(self, position: Tensor) -> None:
        """Put the chains at positions (C, D)."""
        self.state = self.evaluate(position)

    def measure_temperature(self, seen: Sequence[Tensor]) -> None:
        """Measure temperatures about the mean of positions, and along a whitened direction.

        Args:
            seen: positions (C, D) of warm-up, of which each group has its own mean.
        """
        parts = zip(*(self.groups(position) for position in seen), strict=True)
        centers = [torch.cat(part).mean(0) for part in parts]
        first = torch.zeros_like(centers[0])
        first[0] = 1.0
        if self.num_groups == 1:
            direction = self.factor.forward(first[None])[0]
            self._thermometer = Thermometer(centers[0], self.factor.dual(first), direction)
            return
        each = self.num_chains // self.num_groups
        self._thermometer = Thermometer(
            torch.stack(centers).repeat_interleave(each, 0),
            self.factor.dual(first).repeat_interleave(each, 0),
            self.factor.forward(first.expand_as(self.position)),
        )

    def advance(self) -> Statistics:
        """Take one trajectory of every chain; call it under `torch.no_grad()`.

        Returns:
            By-products at the positions that it started from.
        """
        start, scale = self.state, self._scale_of(self._count)
        end = start._replace(energy_error=torch.zeros_like(start.energy_error))
        steps = [scale * step for step in self.steps]
        h = self._column(steps)
        afresh = torch.zeros_like(h)
        kept = self._column([exp(-self.path.friction * step) for step in steps])
        for number in range(self._num_steps(scale)):
            noise, _ = self.stream.next()
            end = self._move(end, noise, h, kept if number else afresh)
        self._add_up(start)
        self._see(end, scale)
        uniform = torch.rand(
            self.num_chains,
            generator=self._uniform,
            dtype=self.density.dtype,
            device=self.density.device,
        )
        self.state = malt.accept(start, end, uniform)
        norm = torch.linalg.vector_norm(start.gradient, dim=-1)
        return Statistics(torch.stack([start.log_density, norm], -1))

    def _see(self, end: malt.State, scale: float) -> None:
        """Add up how a trajectory ended: acceptances at scale 1, losses at the shortest step."""
        if scale == 1.0:
            self.acceptance = malt.acceptance(end)
        self._ended[0] += self.acceptance
        if scale == min(self.path.scales):
            self._ended[1] += malt.diverged(end, scale)

    def _move(self, state: malt.State, noise: Tensor, h: Tensor, decay: Tensor) -> malt.State:
        self.num_gradients += 1
        with torch.no_grad():
            return malt.State(
                *self._built.run(*pytree.tree_leaves(self._inputs(state, noise, h, decay)))
            )

    def _add_up(self, state: malt.State) -> None:
        center, dual, direction = self._thermometer
        displacement = state.position - center
        virials = block_virials(self.blocks, displacement, state.gradient)
        along = -(_along(displacement, dual) * _along(state.gradient, direction))[:, None]
        self.totals = self.totals.add(state.log_likelihood, torch.cat([virials, along], -1))

    def take_means(self, num_steps: int) -> tuple[Tensor, Tensor]:
        """Take means over the trajectories since the last call, as `Chains.take_means`."""
        totals = self.totals
        loss = -totals.log_likelihood / (num_steps * self.density.num_data)
        temperatures = totals.virials / num_steps
        for total in (totals.log_likelihood, totals.virials):
            total.zero_()
        return loss, temperatures

    def take_own_statistics(self, num_steps: int) -> tuple[Tensor, ...]:
        """Take the mean acceptance (C,) since the last call, and how many trajectories diverged.

        The acceptance is that of scale 1: after another it counts again, as it last was.
        """
        acceptances, diverged = self._ended
        self._ended = torch.zeros_like(self._ended)
        return acceptances / num_steps, diverged

    def left(self) -> Left:
        """Give what others go on from."""
        return Left(self.steps, self.factor, self.state, self._thermometer)

    def go_on_from(self, left: Left, chains: Sequence[int]) -> None:
        """Go on where some chains of others are, whole groups of them, with their settings."""
        each = len(left.state.position) // len(left.steps)
        groups = [chain // each for chain in chains[::each]]
        self.steps = tuple(left.steps[group] for group in groups)
        self.factor = grouped([group_of(left.factor, group) for group in groups])
        self.state = malt.State(*(values[[*chains]] for values in left.state))
        self._thermometer = Thermometer(
            *(values if values.dim() == 1 else values[[*chains]] for values in left.thermometer)
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Give all that changes in a run; see `load_state_dict`."""
        return {
            **{f"state/{name}": value for name, value in self.state._asdict().items()},
            **{f"totals/{name}": value for name, value in self.totals._asdict().items()},
            **{f"factor/{k}": leaf for k, leaf in enumerate(pytree.tree_leaves(self.factor))},
            **{f"stream/{name}": value for name, value in self.stream.state().items()},
            "uniform": self._uniform.get_state(),
            "ended": self._ended,
            "acceptance": self.acceptance,
            **{f"thermometer/{k}": value for k, value in self._thermometer._asdict().items()},
            "steps": torch.tensor(self.steps, dtype=torch.float64),
            "gradients": torch.tensor(self.num_gradients),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on exactly from a `state_dict`."""

        def part(name: str, kind: Any) -> Any:
            return kind(*(state[f"{name}/{field}"].clone() for field in kind._fields))

        self.state, self.totals = part("state", malt.State), part("totals", Totals)
        leaves, structure = pytree.tree_flatten(self.factor)
        own = [state[f"factor/{k}"].clone() for k in range(len(leaves))]
        self.factor = pytree.tree_unflatten(own, structure)
        self._uniform.set_state(state["uniform"])
        self._ended, self.acceptance = state["ended"].clone(), state["acceptance"].clone()
        self._thermometer = part("thermometer", Thermometer)
        self.steps = tuple(state["steps"].tolist())
        self.num_gradients = int(state["gradients"])
        prefix = "stream/"
        self.stream.restore(
            {name[len(prefix) :]: v for name, v in state.items() if name.startswith(prefix)}
        )


def _along(values: Tensor, direction: Tensor) -> Tensor:
    """Take the products (C,) of values (C, D) with one direction (D,), or each with its own."""
    return values @ direction if direction.dim() == 1 else (values * direction).sum(-1)
