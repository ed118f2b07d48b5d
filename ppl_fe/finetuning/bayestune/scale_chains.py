"""The chains of stage 1: equations (1) and (2) of `bayestune` on a network and its data.

The weights of a fresh head have the prior N(0, 1/precision) and move by SGLD with the same ε.

A network of 22.7 million weights sets the layout. Chains run one after another. Offsets, weights,
gradient and the two running sums of λ are five vectors (D,), the noise's scale is half a one, and
all else is done block by block (`at_scale`). Beside them stands the network as loaded, two vectors
(benchmarks/stage_one.py measures the sum).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from math import sqrt
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ppl_fe.data.sources import LoaderData, TensorData
from ppl_fe.files.kept_run import State
from ppl_fe.files.state_file import in_one, in_parts
from ppl_fe.finetuning.bayestune import proximal_step as proximal
from ppl_fe.finetuning.bayestune.at_scale.fused_update import NOISE_DTYPE, FusedUpdate, ScaleDraw
from ppl_fe.finetuning.bayestune.at_scale.stiffness import measure
from ppl_fe.finetuning.bayestune.chain_agreement import some_weights
from ppl_fe.finetuning.bayestune.control_variates import ControlVariates
from ppl_fe.finetuning.bayestune.grouped import GroupedUpdate, group_index
from ppl_fe.finetuning.bayestune.offsets import Offsets
from ppl_fe.finetuning.bayestune.pulls import TELLING
from ppl_fe.finetuning.bayestune.scale_moments import ScaleMoments
from ppl_fe.finetuning.bayestune.scale_posterior import ScalePosterior, drawn, expected
from ppl_fe.finetuning.flat_gradient import BLOCK, GradientParts
from ppl_fe.finetuning.flat_weights import WorkingCopy, padding_for
from ppl_fe.finetuning.objective import Batch, Counted, Objective, shuffled
from ppl_fe.finetuning.sampling_plan import SamplingPlan
from ppl_fe.inference.step.compile import CompileMode, TensorFunction, build
from ppl_fe.networks.flat import FlatNetwork

STEP_SHARE = 0.7  # of 1/(a + s²) along the stiffest direction; 0.8 is the most that `prepare` takes
# Inductor takes 5 to 25 s for the step; uncompiled, a weight costs about 0.1 µs a step more.
WORTH_COMPILING = 4e8  # weights times steps


class Update(Protocol):
    """A step of equation (2) for one prior of the scales: `FusedUpdate` or `GroupedUpdate`."""

    scales: ScalePosterior

    @property
    def num_scales(self) -> int: ...

    def per_weight(self, values: Tensor) -> Tensor: ...

    def scale_of(self, weights: Tensor) -> Tensor: ...

    def prepare(self, step_size: float) -> float: ...

    def start(self, generator: torch.Generator) -> None: ...

    def __call__(
        self, gradient: GradientParts, noise_sd: Tensor, generator: torch.Generator
    ) -> None: ...

    def read_scales(self, generator: torch.Generator) -> Iterator[ScaleDraw]: ...

    def state(self) -> dict[str, Tensor]: ...

    def restore(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass
class Tuning:
    """What `ScaleChains.tune` chose, and what it keeps for the next time.

    Attributes:
        step_size: ε in use; 0 before the first time.
        clamped: the share of weights whose a + s² the step size cannot make up for.
        noise_sd: (D + padding,) the sd of the view's noise, in `NOISE_DTYPE`.
        direction: (D + padding,) bfloat16, the stiffest direction, to begin the next time with.
    """

    step_size: float = 0.0
    clamped: float = 0.0
    noise_sd: Tensor | None = None
    direction: Tensor | None = None


class ScaleChains:
    """All chains of stage 1; `run_chains` runs them, `moments` and `counts` hold the results.

    Args:
        network: the network of D parameters; it is not changed.
        objective: the mean negative log-likelihood of a minibatch.
        source: the data.
        alpha: shape α of the scales' Gamma prior.
        beta: its rate β.
        plan: lengths and settings.
        head: places of the fresh head's weights.
        reference: of control variates, and where chains start; None (the default) for plain
            minibatches and a start at the pretrained weights.

    Attributes:
        offsets: Δ and w of the present chain.
        moments: `ScaleMoments` of `update.num_scales` scales; None before the first kept draw.
        counts: (D + padding,) in how many draws a scale was among the largest, if asked for.
        tuning: the step size in use and what belongs to it.
        shorter: by how much the step size is divided, 1 at first.
        num_moved: steps taken since the first start or the last restart, of all chains.

    Raises:
        ValueError: α or β out of range.
    """

    def __init__(
        self,
        network: FlatNetwork,
        objective: Objective,
        source: TensorData | LoaderData,
        alpha: float,
        beta: float,
        plan: SamplingPlan,
        head: list[slice],
        reference: ControlVariates | None = None,
    ) -> None:
        self.reference = reference
        self.network, self.source, self.plan, self.head = network, source, plan, head
        width, padding = padding_for(network.num_parameters, BLOCK)
        # With autocast a difference of gradients is mostly rounding.
        exact = objective if reference is None else objective.in_full_precision
        self.working = WorkingCopy(network, exact, padding)
        objective.check(self.working.module, source)
        self.offsets = Offsets(network.anchor, self.working.weights, width)
        self.update = self._make_update(alpha, beta)
        # Made with the first kept draw: `measure` needs the memory before.
        self.moments: ScaleMoments | None = None
        self.counts: Tensor | None = None
        self.tuning, self.shorter, self.num_moved = Tuning(), 1.0, 0
        self._batches = Counted(iter(()))
        self._generator = torch.Generator(network.device)

    def _make_update(self, alpha: float, beta: float) -> Update:
        plan, network, offsets = self.plan, self.network, self.offsets
        scales = ScalePosterior(alpha, beta, offsets.values.dtype, network.device)
        if plan.groups is not None:
            index = group_index(network, plan.groups)
            return GroupedUpdate(scales, plan.data_size, offsets, index)
        read = drawn if plan.scale == "drawn" else expected
        return FusedUpdate(scales, plan.data_size, offsets, self._build, read)

    def _build(self, function: TensorFunction, example: list[Tensor]) -> TensorFunction:
        steps = self.plan.num_chains * self.plan.num_steps
        worth = steps * self.network.num_parameters > WORTH_COMPILING
        mode: CompileMode = "compiled" if worth else "traced"
        return build(function, example, mode, steps, fused=True).run

    def restart(self, shorter: float) -> None:
        """Forget all draws, to begin again with 1/`shorter` of the step size."""
        self.tuning, self.shorter, self.num_moved = Tuning(), shorter, 0
        self.moments = self.counts = None

    def start(self, chain: int) -> None:
        """Put a chain at a start of its own; the first one also tunes the step at the anchor."""
        seeds = self._seeds(chain)
        self._generator.manual_seed(seeds[0])
        self._batches = shuffled(self.source, self.plan.batch_size, seeds[1])
        if chain == 0:
            self._tune_at_start()
            if self.reference is not None and not self.reference.fitted and self._comes_too_late:
                self.reference.fit()
                self._tune_at_start()
        # Overdispersed, but at most twice the prior's sd: a wider start destroys the network.
        spread = 2 * min(sqrt(self.tuning.step_size / 2), self.update.scales.offset_sd)
        values = self.offsets.values.zero_()
        values[: self.network.num_parameters].normal_(generator=self._generator).mul_(spread)
        self._go_to_start()
        self.offsets.write()
        self.update.start(self._generator)

    def _tune_at_start(self) -> None:
        self.offsets.values.zero_()
        self._go_to_start()
        self.offsets.write()
        if self.reference is not None and self.reference.moved:  # before this is a new try
            self._move_reference()
        self.tune(exact=self.reference is not None)

    def _seeds(self, chain: int) -> list[int]:
        """Give the seeds of a chain's noise and of its batches."""
        state = np.random.SeedSequence([self.plan.seed, chain]).generate_state(2)
        return [int(seed) for seed in state]

    def _go_to_start(self) -> None:
        """Move the offsets on to where the reference was at first, if there is one."""
        if self.reference is not None:
            self.offsets.values[: self.network.num_parameters] += self.reference.start

    @property
    def _comes_too_late(self) -> bool:
        """Whether a weight pulled by five β goes less far in the warm-up than noise takes it.

        So it is where a stiff direction, which all weights share, keeps ε small. The pull takes a
        weight 5βε/2 a step, the noise √ε: at ε = 2e-8 and β = 100 that is 1.5e-3 in 300 steps,
        next to 2.4e-3.
        """
        steps, step_size = self.plan.warmup_steps, self.tuning.step_size
        pulled = TELLING * self.update.scales.beta * 0.5 * step_size * steps
        return steps > 0 and pulled < sqrt(step_size * steps)

    def look_around(self, chain: int, step: int) -> None:
        """Start a chain, tune the step and move the reference, each at its step of the warm-up.

        Never later, so that what is kept is a Markov chain, and of one step size for all chains.
        """
        warmup = self.plan.warmup_steps
        half, again, late = warmup // 2, 5 * warmup // 8, -(-3 * warmup // 4)
        if step == 0:
            self.start(chain)
        elif step == half:
            self._move_reference()
            if chain == 0:
                self.tune(exact=self.reference is not None)
        elif step == again and not (self.reference is not None and self.reference.fitted):
            # With its noise mostly gone the chain has come nearer to its posterior. From a
            # fine-tuned start it was near, and a pass costs as much as an eighth of the chain.
            self._move_reference()
        elif step == late and chain == 0 and self.reference is not None:
            self.tune()  # with the noise that there is away from the reference

    def _move_reference(self) -> None:
        if self.reference is not None:
            self.reference.move(self.working.weights[: self.network.num_parameters])

    def tune(self, *, exact: bool = False) -> None:
        """Measure stiffness at the present weights, and set ε and the noise that makes up for it.

        Once at the anchor and once half through the first chain's warm-up; with control variates
        again half through its other half.

        Args:
            exact: gradients have no noise here, as at the reference itself.
        """
        plan, tuning, dtype = self.plan, self.tuning, self.offsets.values.dtype
        tuning.noise_sd = None  # its memory is needed for the measurement, where memory peaks
        is_first = tuning.step_size == 0
        batches: Iterator[Batch] = self._batches
        if self.reference is not None:
            # The noise of control variates is that of the curvature, and bounds the step: it must
            # be stable on single minibatches, which are stiffer than all the data.
            batches = repeat(next(batches))
        exact = exact or plan.batch_size == self.source.num_data
        largest, along, direction = measure(
            self.working,
            self._differentiate,
            self.offsets.write,
            batches,
            None if exact else self._batches,
            plan.data_size,
            self._generator,
            before=tuning.direction,
        )
        tuning.direction = direction if is_first else None
        step_size = 2 * STEP_SHARE / (self.shorter * largest)
        tuning.step_size = step_size if plan.step_size == "auto" else plan.step_size
        most = 0.999 * 2 * proximal.MOST_CURVED / tuning.step_size
        tuning.clamped = float((along > most).sum()) / self.network.num_parameters
        variance = self.update.prepare(tuning.step_size)
        # As `proximal_step.prepare` does it, in the memory of `along`.
        lost = along.clamp_max_(most).to(dtype).mul_(0.5 * tuning.step_size)
        tuning.noise_sd = lost.neg_().add_(variance).sqrt_().to(NOISE_DTYPE)

    def step(self) -> float:
        """Take one step of the present chain.

        Returns:
            The minibatch's loss, in nats a datum.
        """
        assert self.tuning.noise_sd is not None
        loss, gradient = self._differentiate(next(self._batches))
        heads = [self._head_step(where, gradient) for where in self.head]
        self.update(gradient, self.tuning.noise_sd, self._generator)
        for where, moved in zip(self.head, heads, strict=True):
            self.offsets.values[where] = moved
            self.offsets.write(where)
        self.num_moved += 1
        return loss

    def _differentiate(self, batch: Batch) -> tuple[float, GradientParts]:
        loss, gradient = self.working.differentiate(batch)
        if self.reference is not None:
            gradient = self.reference.correct(batch, gradient)
        return loss, gradient

    def _head_step(self, where: slice, gradient: GradientParts) -> Tensor:
        offset, step_size = self.offsets.values[where], self.tuning.step_size
        weight = self.network.anchor[where] + offset
        ahead = -self.plan.data_size * gradient.block(where, torch.empty_like(weight))
        ahead = ahead - self.plan.head_precision * weight
        noise = torch.empty_like(offset).normal_(generator=self._generator)
        return offset + 0.5 * step_size * ahead + sqrt(step_size) * noise

    def keep(self) -> None:
        """Add the present draw's scales to `moments` and `counts`."""
        plan, values = self.plan, self.offsets.values
        if self.moments is None:
            self.tuning.direction = None
            self._make_moments()
        assert self.moments is not None
        draw = None if self.counts is None else torch.empty_like(values)
        for at, (scale, *variance) in self.update.read_scales(self._generator):
            self.moments.add(at, scale, *variance)
            if draw is not None:
                draw[at] = scale
        self.moments.next()
        if draw is not None and self.counts is not None and plan.top is not None:
            for where in [slice(self.network.num_parameters, None), *self.head]:
                draw[where] = -1
            self.counts[torch.topk(draw, plan.top, sorted=False).indices] += 1

    def _make_moments(self) -> None:
        plan, values = self.plan, self.offsets.values
        watched = self._watched() if plan.num_chains > 1 else None
        self.moments = ScaleMoments(
            self.update.num_scales,
            plan.num_chains,
            plan.num_samples,
            values,
            errors=plan.errors,
            watched=watched,
            sequences=plan.errors and plan.groups is not None,
        )
        if plan.top is not None:
            self.counts = torch.zeros_like(values, dtype=torch.int32)

    def _watched(self) -> Tensor:
        chosen = some_weights(self.network.num_parameters, self.head)
        return self.update.scale_of(chosen.to(self.network.device))

    def per_weight(self, values: Tensor) -> Tensor:
        """Give each weight (D,) what `moments` and `counts` hold of its scale."""
        return self.update.per_weight(values)

    @property
    def so_far(self) -> str:
        """Say in words how far the chains have come."""
        return f"{self.num_moved} of {self.plan.num_chains * self.plan.num_steps} steps"

    def state(self) -> State:
        """Give all that `restore` needs, to go on bit for bit."""
        tuning = self.tuning
        parts = {"update": self.update.state()}
        if self.moments is not None:
            parts["moments"] = self.moments.state()
        if self.reference is not None:
            parts["reference"] = self.reference.state()
        tensors = in_one(parts)
        tensors |= {"offsets": self.offsets.values, "generator": self._generator.get_state()}
        more = {"noise_sd": tuning.noise_sd, "direction": tuning.direction, "counts": self.counts}
        tensors |= {name: value for name, value in more.items() if value is not None}
        about = {name: getattr(self, name) for name in ("shorter", "num_moved")}
        about |= {"step_size": tuning.step_size, "clamped": tuning.clamped}
        return tensors, {**about, "taken": self._batches.taken}

    def restore(self, state: State) -> None:
        """Go on from a `state` of the same call."""
        tensors, about = state
        parts = {"update": {}, **in_parts(tensors)}
        own, device = parts[""], self.network.device
        self.shorter, self.num_moved = about["shorter"], about["num_moved"]
        self.tuning = Tuning(about["step_size"], about["clamped"])
        for name in ("noise_sd", "direction"):
            setattr(self.tuning, name, own[name].to(device) if name in own else None)
        if self.tuning.step_size:
            self.update.prepare(self.tuning.step_size)
        self.update.restore(parts["update"])
        self.offsets.values.copy_(own["offsets"])
        self.offsets.write()
        chain = max(0, self.num_moved - 1) // self.plan.num_steps
        seed = self._seeds(chain)[1]
        self._batches = shuffled(self.source, self.plan.batch_size, seed, about["taken"])
        self._generator.set_state(own["generator"])
        if self.reference is not None:
            self.reference.restore(parts["reference"])
        if "moments" in parts:
            self._make_moments()
            assert self.moments is not None
            self.moments.restore(parts["moments"])
            self.counts = own["counts"].to(device) if "counts" in own else None
