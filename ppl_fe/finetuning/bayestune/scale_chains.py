"""Stage 1 of BayesTune: chains over a network's offsets from the anchor, and what they say of λ.

    y ~ likelihood(f(w, x))^{N̂/n},    w_i = anchor_i + Δ_i,    Δ_i ~ m,    λ_i ~ p(λ | Δ_i)

by the proximal sampler (`proximal`), whose law of (Δ, λ) is the stated posterior. Nothing depends
on the scales between two kept draws, so they are drawn, or averaged out, at kept draws only. The
weights of a fresh head have the prior N(0, 1/precision) and move by SGLD with the same ε.

A network of 22.7 million weights sets the layout. Chains run one after another. Offsets, weights,
gradient and the two running sums of λ are five vectors (D,), the noise's scale is half a one, and
all else is done block by block (`block_update`). Beside them stands the network as loaded, two
vectors (benchmarks/stage_one.py measures the sum).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ppl_fe.data.sources import LoaderData, TensorData
from ppl_fe.diverged import DivergedError
from ppl_fe.finetuning.bayestune import proximal_step as proximal
from ppl_fe.finetuning.bayestune.at_scale.fused_update import NOISE_DTYPE, BlockUpdate
from ppl_fe.finetuning.bayestune.at_scale.stiffness import measure
from ppl_fe.finetuning.bayestune.scale_moments import ScaleMoments
from ppl_fe.finetuning.bayestune.scale_posterior import ScalePosterior, drawn, expected
from ppl_fe.finetuning.flat_gradient import BLOCK, GradientParts
from ppl_fe.finetuning.flat_weights import WorkingCopy, padding_for
from ppl_fe.finetuning.objective import Batch, Objective, shuffled
from ppl_fe.finetuning.sampling_plan import SamplingPlan
from ppl_fe.inference.step.compile import CompileMode, TensorFunction, build
from ppl_fe.networks.flat import FlatNetwork

STEP_SHARE = 0.7  # of 1/(a + s²) along the stiffest direction; 0.8 is the most that `prepare` takes
# Inductor takes 5 to 25 s for the step; uncompiled, a weight costs about 0.1 µs a step more.
WORTH_COMPILING = 4e8  # weights times steps


class ScaleChains:
    """All chains of stage 1; `run_chains` runs them, `moments` and `counts` hold what they said.

    Args:
        network, objective, source: what is fitted to what.
        alpha, beta: of the Gamma prior of the scales.
        plan: lengths and settings.
        head: places of the fresh head's weights.

    Attributes:
        moments: `ScaleMoments` of D + padding scales; None before the first kept draw.
        counts: (D + padding,) in how many draws a scale was among the largest, if asked for.
        step_size: ε in use; that of the later half of the warm-up in the end.
        num_moved: steps taken since the beginning, of all chains.
        clamped: the share of weights whose a + s² the step size cannot make up for.

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
    ) -> None:
        self.network, self.source, self.plan, self.head = network, source, plan, head
        size = self.size = network.num_parameters
        self.width, padding = padding_for(size, BLOCK)
        self.working = WorkingCopy(network, objective, padding)
        objective.check(self.working.module, source)
        wide = network.dtype in (torch.float32, torch.float64)
        dtype = network.dtype if wide else torch.float32
        self.scales = ScalePosterior(alpha, beta, dtype, network.device)
        self.offset = torch.zeros(size + padding, dtype=dtype, device=network.device)
        self.forward_noise = self.offset
        self.noise = self.offset.new_zeros(self.width)
        self.blocks = [slice(k, k + self.width) for k in range(0, size + padding, self.width)]
        # Made with the first kept draw: `measure` wants the memory before.
        self.moments: ScaleMoments | None = None
        self.counts: Tensor | None = None
        self.step_size, self.clamped, self.shorter, self.num_moved = 0.0, 0.0, 1.0, 0
        self._direction: Tensor | None = None
        self._batches: Iterator[Batch] = iter(())
        self._generator = torch.Generator(network.device)
        self._update: BlockUpdate | None = None
        read = drawn if plan.scale == "drawn" else expected
        self._scale = self._build(read(self.scales), [self.offset[: self.width], self.noise])

    def begin_anew(self, shorter: float) -> None:
        """Forget everything but the share of the step to take from now on, 1/`shorter`."""
        self.shorter, self.step_size, self.num_moved = shorter, 0.0, 0
        self.moments = self.counts = self._direction = None

    def step(self) -> float:
        """One step of the present chain; gives the minibatch's loss, in nats a datum."""
        loss, gradient = self.working.differentiate(next(self._batches))
        heads = [self._head_step(where, gradient) for where in self.head]
        self._move(gradient)
        for where, moved_head in zip(self.head, heads, strict=True):
            self.offset[where] = moved_head
            self._write(where)
        self.num_moved += 1
        return loss

    def per_weight(self, values: Tensor) -> Tensor:
        """(D,) of what `moments` and `counts` hold."""
        return values[: self.network.num_parameters]

    def start(self, chain: int) -> None:
        """Put a chain at a start of its own; the first also measures how stiff the anchor is."""
        state = np.random.SeedSequence([self.plan.seed, chain]).generate_state(2)
        self._generator.manual_seed(int(state[0]))
        self._batches = shuffled(self.source, self.plan.batch_size, int(state[1]))
        self.offset.zero_()
        if chain == 0:
            self._write()
            self.tune()
        # Overdispersed, but no wider than the prior: of that no network would be left.
        spread = 2 * min(sqrt(self.step_size / 2), self.scales.offset_sd)
        self.offset[: self.size].normal_(generator=self._generator).mul_(spread)
        self._write()

    def tune(self) -> None:
        """Measure stiffness at the present weights, and set ε and the noise that makes up for it.

        Once at the anchor and once half through the first chain's warm-up; never later, so that
        what is kept is a Markov chain, and the same one for all.
        """
        plan, is_first = self.plan, self.step_size == 0
        self.forward_noise = self.offset  # an old one's memory is wanted for the measurement
        largest, along, self._direction = measure(
            self.working,
            self._write,
            self._batches,
            plan.data_size,
            self._generator,
            exact=plan.batch_size == self.source.num_data,
            before=self._direction,
        )
        if not is_first:
            self._direction = None
        step_size = 2 * STEP_SHARE / (self.shorter * largest)
        self.step_size = step_size if plan.step_size == "auto" else plan.step_size
        most = 0.999 * 2 * proximal.MOST_CURVED / self.step_size
        self.clamped = float((along > most).sum()) / self.network.num_parameters
        variance = self._prepare()
        # As `prepare` does it, in the memory of `along`; each block brings its own to the step.
        lost = along.clamp_max_(most).to(self.offset.dtype).mul_(0.5 * self.step_size)
        self.forward_noise = lost.neg_().add_(variance).sqrt_().to(NOISE_DTYPE)

    def _prepare(self) -> float:
        """The step of the present ε; gives the variance of y/√η where none is made up for."""
        if self._update is None:
            self._update = BlockUpdate(
                self.scales,
                self.plan.data_size,
                self.offset,
                self.working.weights,
                self.network.anchor,
                self.blocks,
                self._build,
            )
        return self._update.prepare(self.step_size)

    def _move(self, gradient: GradientParts) -> None:
        """Δ -> Δ', and the weights with it."""
        assert self._update is not None
        self._update(gradient, self.forward_noise, self._generator)

    def _build(self, function: TensorFunction, example: list[Tensor]) -> TensorFunction:
        steps = self.plan.num_chains * self.plan.num_steps
        worth = steps * self.network.num_parameters > WORTH_COMPILING
        mode: CompileMode = "compiled" if worth else "traced"
        return build(function, example, mode, steps, fused=True)[0]

    def _head_step(self, where: slice, gradient: GradientParts) -> Tensor:
        offset = self.offset[where]
        weight = self.network.anchor[where] + offset
        ahead = -self.plan.data_size * gradient.block(where, torch.empty_like(weight))
        ahead = ahead - self.plan.head_precision * weight
        noise = torch.empty_like(offset).normal_(generator=self._generator)
        return offset + 0.5 * self.step_size * ahead + sqrt(self.step_size) * noise

    def _write(self, where: slice = slice(None)) -> None:
        at = slice(*where.indices(self.network.num_parameters))
        torch.add(self.network.anchor[at], self.offset[at], out=self.working.weights[at])

    def _empty_moments(self, size: int) -> ScaleMoments:
        chains, draws, errors = self.plan.num_chains, self.plan.num_samples, self.plan.errors
        self._direction = None
        return ScaleMoments(size, chains, draws, self.offset, errors=errors)

    def keep(self) -> None:
        """Add the present draw's scales to `moments` and `counts`."""
        plan = self.plan
        if self.moments is None:
            self.moments = self._empty_moments(len(self.offset))
            if plan.top is not None:
                self.counts = torch.zeros_like(self.offset, dtype=torch.int32)
        draw = None if self.counts is None else torch.empty_like(self.offset)
        for at in self.blocks:
            self.noise.normal_(generator=self._generator)
            value, *extra = self._scale(self.offset[at], self.noise)
            self.moments.add(at, value, *extra)
            if draw is not None:
                draw[at] = value
        self.moments.next()
        if draw is not None and self.counts is not None and plan.top is not None:
            for where in [slice(self.network.num_parameters, None), *self.head]:
                draw[where] = -1
            self.counts[torch.topk(draw, plan.top, sorted=False).indices] += 1


SHORTER, MOST_TRIES = 4.0, 4


def run_chains(chains: ScaleChains, *, progress_bar: bool) -> int:
    """Run every chain from a start of its own; how often it took shorter steps to get through.

    An automatic step is chosen by the stiffness at the anchor and half through the warm-up. A
    network can be far stiffer on the way, as where a fresh head has not learnt to use it, and then
    loss or gradient overflow. Nothing of such a try is kept: all chains begin anew with a quarter
    of its step, three times at most.

    Raises:
        DivergedError: names chain, step and layer; `chains.moments` hold the draws before.
    """
    for tried in range(MOST_TRIES):
        try:
            _run(chains, progress_bar)
        except DivergedError:
            last = tried == MOST_TRIES - 1
            if last or chains.plan.step_size != "auto" or chains.num_moved == 0:
                raise
            chains.begin_anew(SHORTER ** (tried + 1))
        else:
            break
    return tried


def _run(chains: ScaleChains, progress_bar: bool) -> None:
    plan = chains.plan
    with tqdm(
        total=plan.num_chains * plan.num_steps,
        disable=not progress_bar,
        desc="stage 1",
        unit="step",
        leave=False,
    ) as bar:
        for chain in range(plan.num_chains):
            step = 0
            try:
                chains.start(chain)
                for step in range(plan.num_steps):
                    if chain == 0 and 0 < step == plan.warmup_steps // 2:
                        chains.tune()
                    loss = chains.step()
                    kept = step + 1 - plan.warmup_steps
                    if kept > 0 and kept % plan.thinning == 0:
                        chains.keep()
                    bar.update()
                    if not bar.disable:
                        bar.set_postfix({"chain": chain, "loss": f"{loss:.4f}"}, refresh=False)
            except DivergedError as error:
                raise DivergedError(
                    f"chain {chain}, step {step + 1} of {plan.num_steps}, at step size "
                    f"{chains.step_size:.3g}: {error}"
                ) from error
