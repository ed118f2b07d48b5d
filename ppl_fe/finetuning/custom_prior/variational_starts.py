"""Coordinates and starts for any prior, so that one step size serves all its sites.

A chain that begins at the anchor meets the data's pull far from where it is going: curvature grows
exponentially with the logarithm of a scale, and a chain that falls in by itself overshoots. The
highest density is no better a start: where weights outnumber the data it has huge scales and no
offsets. So each chain begins at a draw from a normal law fitted to the posterior by variational
inference, whose steps are bounded. The fit also says which weights the data hold, which are
centred, and which the prior holds (`models/centring.py`). Nothing of it is in the draws but their
coordinates and their start.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from math import log
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_fe.inference.program.density import Density
from ppl_fe.inference.step.batchable import batchable
from ppl_fe.inference.step.compile import CompileMode, build
from ppl_fe.inference.step.gradients import Batch, full_data, minibatch
from ppl_fe.models.bayestune import BayesTunePosterior, Prior
from ppl_fe.models.centring import UNIT, centred_in_part, hangs_on_others, held, site_values

NUM_DRAWS = 16
NEAR = 0.1  # of the way from the prior's middle to a draw: where the weights' means begin
STEPS, LENGTH = 1000, 0.05  # the longest step, in the prior's own spread; they shrink to nothing
# Mean over sd of a unit variable, above which its weight is centred. The fitted sd is narrower than
# the posterior's where sites hang together, but pure noise stays below 1 and weights that must move
# come out at 3 and more.
HELD = 2.0

Gradient = Callable[[Tensor], Tensor]


class Settled(NamedTuple):
    """program: the posterior in its coordinates. start: site -> unconstrained values (C, ...)."""

    program: BayesTunePosterior
    start: dict[str, Tensor]


def settle(
    make: Callable[[Prior], BayesTunePosterior],
    prior: Prior,
    args: Sequence[Any],
    num_chains: int,
    seed: int,
) -> Settled:
    """Choose coordinates for a prior's posterior, and C starts in them; 1,000 gradients a chain.

    Args:
        make: a prior -> the posterior.
        prior: of laws that can be drawn from.
        args: the inputs and targets; of a loader its first batch, which gives rough starts.
        num_chains, seed: C, and that of the draws.

    Raises:
        NotImplementedError: an improper prior, which nobody can draw from.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hangs = hangs_on_others(make(prior).draw_weights)
        program = make(centred_in_part(prior, 0.0) if hangs else prior)
        draws = [site_values(program.draw_weights) for _ in range(max(NUM_DRAWS, num_chains))]
    density = Density(program, args)
    positions = torch.cat([_position(density, draw) for draw in draws])
    middle = positions.median(0).values
    spread = (1.5 * (positions - middle).abs().median(0).values).clamp_min(1e-30)  # sd, if normal
    # A draw of a heavy-tailed scale may lie where no network is left.
    begin = middle + (positions[:num_chains] - middle).clamp(-2 * spread, 2 * spread)
    for name, part in density.blocks.items():
        if name in ("w", UNIT, "head"):
            begin[:, part] = torch.lerp(middle[part], begin[:, part], NEAR)
    generator = torch.Generator(begin.device).manual_seed(seed)
    mean, sd = _fit(_gradient(density, args, begin), begin, spread, generator)
    start = mean + sd * torch.empty_like(sd).normal_(generator=generator)
    if not hangs:
        return Settled(program, density.split(start))
    part = density.blocks[UNIT]
    share = ((mean / sd)[:, part].abs().amin(0) > HELD).to(start.dtype)
    return _moved(make, prior, density, start, share, args)


def _moved(
    make: Callable[[Prior], BayesTunePosterior],
    prior: Prior,
    density: Density,
    start: Tensor,
    share: Tensor,
    args: Sequence[Any],
) -> Settled:
    """Give the same posterior and starts, the weights centred by `share`."""
    program = make(centred_in_part(prior, share))
    target, values = Density(program, args), []
    inverse = {name: transform.inv for name, transform in density.transforms.items()}
    for chain in start:
        own = {name: inverse[name](value) for name, value in density.split(chain).items()}
        weights = site_values(make(held(centred_in_part(prior, 0.0), own)).draw_weights)["w"]
        there = make(centred_in_part(held(prior, {**own, "w": weights}), share))
        head = {name: value for name, value in own.items() if name == "head"}
        values.append(_position(target, site_values(there.draw_weights) | head))
    return Settled(program, target.split(torch.cat(values)))


def _position(density: Density, values: Mapping[str, Tensor]) -> Tensor:
    """Join values on their supports to one unconstrained position (1, D)."""
    transforms = density.transforms
    return density.join({s.name: transforms[s.name](values[s.name])[None] for s in density.sites})


def _gradient(density: Density, args: Sequence[Any], position: Tensor) -> Gradient:
    """Build ∇ log p on all of `args`, (C, D) -> (C, D), for positions of that shape."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `sample` warns of a program that is no single graph
        density = batchable(density, position)
    whole = density.num_data == len(args[1]) and bool(density.subsamples)
    estimate = full_data(density) if whole else minibatch(density)

    def gradient(positions: Tensor, *tensors: Tensor) -> list[Tensor]:
        return [estimate(positions, Batch((), (), tensors), None).gradient]

    mode: CompileMode = "traced" if density.way.traceable else "eager"
    built = build(gradient, [position, *density.tensors], mode, STEPS).run

    def at(positions: Tensor) -> Tensor:
        with torch.no_grad():
            return built(positions, *density.tensors)[0]

    return at


def _fit(
    gradient: Gradient, begin: Tensor, spread: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Fit independent normals, in units of the prior's spread, a fit a chain: means, sds (C, D).

    By the reparametrised gradient (Kucukelbir et al. 2017) and Adam, whose steps are no longer than
    LENGTH, whatever the slope.
    """
    at = torch.stack([begin / spread, torch.full_like(begin, log(NEAR))])  # means, log sds
    first, second = torch.zeros_like(at), torch.zeros_like(at)
    for k in range(1, STEPS + 1):
        noise = torch.empty_like(begin).normal_(generator=generator)
        sd = at[1].exp()
        slope = spread * gradient(spread * (at[0] + sd * noise))
        slope = torch.stack([slope, slope * noise * sd + 1]).nan_to_num(0.0, 0.0, 0.0)
        first = torch.lerp(first, slope, 0.1)
        second = torch.lerp(second, slope.square(), 0.01)
        size = (second / (1 - 0.99**k)).sqrt() + torch.finfo(slope.dtype).tiny
        step = (first / (1 - 0.9**k) / size).clamp(-1, 1)
        at = at + LENGTH * (1 - k / STEPS) * step
    return spread * at[0], spread * at[1].exp()
