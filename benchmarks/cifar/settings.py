"""The sizes of the experiment: for two cores, for a GPU, and a smoke test of either."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from cifar.data import Split
from cifar.networks import PatchNetwork, ResNet18
from ppl_fe.demo.pretraining import Configuration


@dataclass(frozen=True)
class Chains:
    """Length of the chains at one localisation γ; a minibatch of None means all the data."""

    localization: float
    warmup_steps: int
    num_samples: int
    thinning: int
    batch_size: int | None = None
    num_chains: int = 2


@dataclass(frozen=True)
class Settings:
    """One form of the experiment.

    Attributes:
        build: classes -> network.
        split: of the data.
        configurations, num_seeds: the sweep, one factor at a time, and repeats.
        target_loss, max_epochs: pretraining stops at the first, fails at the second.
        wide, tight: the chains at the localisation of the criterion and at a larger one.
        complexity_images: images for the geometric complexity, and a chunk of its Jacobians.
        episodes: of each few-shot task; repeats: of full fine-tuning.
        tests: images of a class to test on.
        noise: of the task "noise", in standard deviations of a pixel.
        full_shots, full_batch: images of a class in full fine-tuning, and its minibatch.
        head_rate, backbone_rate, num_steps: of every fine-tuning.
        workers: processes of one thread each.
    """

    build: Callable[[int], nn.Module]
    split: Split
    configurations: tuple[Configuration, ...]
    num_seeds: int
    target_loss: float
    max_epochs: int
    wide: Chains
    tight: Chains
    complexity_images: int
    complexity_chunk: int
    ways_episodes: int
    same_episodes: int
    repeats: int
    tests: int
    full_shots: int
    full_batch: int = 128
    noise: float = 0.5
    head_rate: float = 0.5
    backbone_rate: float = 0.05
    num_steps: int = 100
    workers: int = 2


def one_factor_sweep(
    base: Configuration,
    learning_rates: tuple[float, ...],
    batch_sizes: tuple[int, ...],
    momenta: tuple[float, ...],
) -> tuple[Configuration, ...]:
    """The base, then each factor varied alone."""
    varied = [
        *(replace(base, learning_rate=value) for value in learning_rates),
        *(replace(base, batch_size=value) for value in batch_sizes),
        *(replace(base, momentum=value) for value in momenta),
    ]
    return tuple(dict.fromkeys([base, *varied]))


# At localisation 100 the chains still know their task (a loss of 0.7 where chance is 2.3), at 10
# they no longer do: D weights lie sqrt(D/localisation) from the checkpoint. FULL has 950 times the
# weights and keeps that distance. SMALL takes all the data in every step: noise of minibatches of
# 256 makes the automatic step and friction a hundred times slower to relax.
SMALL = Settings(
    build=partial(PatchNetwork, widths=(16, 32, 64)),
    split=Split(classes=10, training=100, held_out=100, fresh=200, downstream=200),
    configurations=one_factor_sweep(
        Configuration(0.1, 32, 0.0), (0.05, 0.2, 0.3), (16, 64), (0.5, 0.7)
    ),
    num_seeds=4,
    target_loss=0.02,
    max_epochs=200,
    wide=Chains(100.0, warmup_steps=200, num_samples=100, thinning=8),
    tight=Chains(1000.0, warmup_steps=100, num_samples=100, thinning=2),
    complexity_images=500,
    complexity_chunk=64,
    ways_episodes=150,
    same_episodes=60,
    repeats=12,
    tests=30,
    full_shots=100,
)

FULL = Settings(
    build=ResNet18,
    split=Split(classes=64, training=450, held_out=75, fresh=75, downstream=600),
    configurations=one_factor_sweep(
        Configuration(0.05, 128, 0.0),
        (0.01, 0.02, 0.1, 0.2),
        (32, 64, 256, 512, 1024),
        (0.3, 0.5, 0.7, 0.9),
    ),
    num_seeds=5,
    target_loss=0.02,
    max_epochs=300,
    wide=Chains(1e5, warmup_steps=1000, num_samples=200, thinning=10, batch_size=1024),
    tight=Chains(1e6, warmup_steps=500, num_samples=100, thinning=5, batch_size=1024),
    complexity_images=256,
    complexity_chunk=1,
    ways_episodes=200,
    same_episodes=10,
    repeats=10,
    tests=30,
    full_shots=500,
    workers=1,
)


def smoke(settings: Settings) -> Settings:
    """The same path through the program, at a size of seconds."""
    build: Callable[[int], nn.Module] = partial(PatchNetwork, widths=(4, 4, 8))
    if settings.build is ResNet18:
        build = partial(ResNet18, width=2)
    return replace(
        settings,
        build=build,
        split=Split(classes=5, training=6, held_out=4, fresh=8, downstream=8),
        configurations=(Configuration(0.1, 6, 0.0), Configuration(0.05, 6, 0.5)),
        num_seeds=2,
        target_loss=0.5,
        max_epochs=60,
        wide=replace(settings.wide, warmup_steps=10, num_samples=10, thinning=2, batch_size=16),
        tight=replace(settings.tight, warmup_steps=10, num_samples=10, thinning=1, batch_size=16),
        complexity_images=4,
        ways_episodes=2,
        same_episodes=2,
        repeats=2,
        tests=3,
        full_shots=5,
        full_batch=16,
        num_steps=3,
        workers=1,
    )
