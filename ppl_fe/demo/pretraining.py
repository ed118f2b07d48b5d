"""Many small networks trained at once, each with its own settings, to one training loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import isfinite

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_fe.networks.flat import FlatNetwork

Data = tuple[Tensor, Tensor]
Evaluate = Callable[[Tensor], Tensor]
CHECK_EVERY = 5


@dataclass(frozen=True)
class Configuration:
    """Settings of stochastic gradient descent; ``str`` gives the name used in tables."""

    learning_rate: float
    batch_size: int
    momentum: float

    def __str__(self) -> str:
        return f"lr={self.learning_rate:g} batch={self.batch_size} momentum={self.momentum:g}"


@dataclass(frozen=True)
class Checkpoint:
    """A trained network: its name, how it was trained, its state dict, its full training loss."""

    name: str
    configuration: Configuration
    seed: int
    state_dict: dict[str, Tensor]
    training_loss: float
    num_steps: int


GRID = tuple(
    Configuration(learning_rate, batch_size, momentum)
    for learning_rate, (batch_size, momentum) in product(
        (0.025, 0.05, 0.1, 0.2), ((16, 0.0), (64, 0.9), (32, 0.9))
    )
)


def digits_network(*, width: int = 32, num_classes: int = 5) -> nn.Sequential:
    """Make the demonstration's network, 64-width-width-classes with tanh.

    Nothing in it behaves differently in training and in evaluation, and tanh keeps the loss smooth
    for the sampler and every setting of the grid stable.

    Args:
        width: units in each hidden layer, 32 by default.
        num_classes: outputs, 5 by default.

    Returns:
        The module, initialised from torch's global generator.

    Example:
        >>> sum(p.numel() for p in digits_network().parameters())
        3301
    """
    return nn.Sequential(
        nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(),
        nn.Linear(width, num_classes),
    )  # fmt: skip


def _random_numbers(configuration: Configuration, seed: int) -> int:
    """Make each network's seed, so that no two share a start or a minibatch."""
    settings = (configuration.learning_rate, configuration.batch_size, configuration.momentum)
    entropy = [seed, *(round(1e6 * value) for value in settings)]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def _initial(build: Callable[[], nn.Module], seed: int) -> FlatNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FlatNetwork(build())


def _crossing(loss: Evaluate, before: Tensor, after: Tensor, target: float) -> Tensor:
    """Find the point of before → after, (A, D), where the loss has just reached the target."""
    above, reached = torch.zeros(len(before), 1), torch.ones(len(before), 1)
    for _ in range(20):
        middle = (above + reached) / 2
        high = (loss(before + middle * (after - before)) > target).unsqueeze(1)
        above, reached = torch.where(high, middle, above), torch.where(high, reached, middle)
    return before + reached * (after - before)


@dataclass(frozen=True)
class _Settings:
    """What differs between R networks that are trained side by side.

    Attributes:
        rate: learning rates (R, 1).
        momentum: (R, 1).
        weights: of the examples of a batch, (R, B); all networks draw the largest batch, and
            weights of zero leave each with its own batch size.
        generators: R, of the minibatches.
    """

    rate: Tensor
    momentum: Tensor
    weights: Tensor
    generators: Sequence[torch.Generator]

    @classmethod
    def of(cls, configurations: Sequence[Configuration], seeds: Sequence[int]) -> _Settings:
        largest = max(c.batch_size for c in configurations)
        sizes = torch.tensor([[c.batch_size] for c in configurations])
        return cls(
            rate=torch.tensor([[c.learning_rate] for c in configurations]),
            momentum=torch.tensor([[c.momentum] for c in configurations]),
            weights=(torch.arange(largest) < sizes) / sizes,
            generators=[torch.Generator().manual_seed(seed) for seed in seeds],
        )


class _Descent:
    """Take five steps v ← μ v + ∇L_B(w), w ← w − η v of some of the networks.

    What `vmap` and `grad` do in Python costs more than networks of this size, so the gradient is
    traced, once for each number of networks.

    Args:
        network: the architecture.
        data: images (N, 64) and labels (N,).
        settings: of all networks.
    """

    def __init__(self, network: FlatNetwork, data: Data, settings: _Settings) -> None:
        self.data, self.settings = data, settings
        self._gradients: dict[int, Callable[..., Tensor]] = {}

        def loss(vector: Tensor, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
            return weight @ nn.functional.cross_entropy(network(vector, x), y, reduction="none")

        self._gradient = vmap(grad(loss))

    def __call__(self, which: list[int], w: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
        """Take the steps: weights and velocities (A, D) of networks by their numbers."""
        inputs, targets = self.data
        settings = self.settings
        rate, momentum = settings.rate[which], settings.momentum[which]
        weights = settings.weights[which]
        shape = (CHECK_EVERY, weights.shape[1])
        draws = [torch.randint(len(inputs), shape, generator=settings.generators[k]) for k in which]
        for index in torch.stack(draws, dim=1):
            batch = inputs[index], targets[index], weights
            if len(which) not in self._gradients:
                self._gradients[len(which)] = make_fx(self._gradient)(w, *batch)
            velocity = momentum * velocity + self._gradients[len(which)](w, *batch)
            w = w - rate * velocity
        return w, velocity


def pretrain(
    data: Data,
    configurations: Sequence[Configuration] = GRID,
    seeds: Sequence[int] = (0, 1),
    *,
    build: Callable[[], nn.Module] = digits_network,
    target_loss: float = 0.01,
    max_steps: int = 10_000,
) -> list[Checkpoint]:
    """Train one network for each configuration and seed until all have the same training loss.

    v ← μ v + ∇L_B(w), w ← w − η v on minibatches B drawn with replacement, all networks side by
    side. The loss over all the data is taken every five steps; where it first falls below the
    target, the last five steps are shortened by bisection along their chord, to the point where
    the loss equals the target. So no second optimiser blurs what the settings did, and what
    distinguishes the checkpoints is not their training loss. Each network has its own start and
    minibatches.

    Args:
        data: images (N, 64) and labels (N,).
        configurations: what to vary; by default 4 learning rates × 3 pairs of batch and momentum.
        seeds: repeats of each configuration, 0 and 1 by default.
        build: makes one freshly initialised network, by default the digits'; it must have no
            dropout or batch norm.
        target_loss: mean cross-entropy to stop at, 0.01 by default.
        max_steps: steps after which a network counts as failed, 10,000 by default.

    Returns:
        Checkpoints in the order configurations × seeds, named "lr=0.1 batch=16 momentum=0.9
        seed=0". Equal arguments give equal checkpoints.

    Raises:
        RuntimeError: if a network diverges or has not reached the target in time; names them.
        ValueError: if there is nothing to train.

    Example:
        >>> x = torch.cat([torch.zeros(8, 64), torch.ones(8, 64)])
        >>> y = torch.arange(16) // 8
        >>> trained = pretrain((x, y), [Configuration(0.5, 4, 0.0)], target_loss=0.05)
        >>> [f"{c.name}: {c.training_loss:.3f}" for c in trained]
        ['lr=0.5 batch=4 momentum=0 seed=0: 0.050', 'lr=0.5 batch=4 momentum=0 seed=1: 0.050']
    """
    inputs, targets = data
    runs = list(product(configurations, seeds))
    if not runs or len(inputs) == 0:
        raise ValueError(f"{len(runs)} networks on {len(inputs)} examples: nothing to train")
    names = [f"{configuration} seed={seed}" for configuration, seed in runs]
    states = [_random_numbers(*run) for run in runs]
    networks = [_initial(build, state) for state in states]
    network = networks[0]
    w = torch.stack([other.anchor for other in networks])
    now, velocity = w.clone(), torch.zeros_like(w)
    settings = _Settings.of([configuration for configuration, _ in runs], states)

    def full_loss(vector: Tensor) -> Tensor:
        return nn.functional.cross_entropy(network(vector, inputs), targets)

    descend, losses = _Descent(network, data, settings), vmap(full_loss)
    beside = list(range(len(runs)))  # those that are trained side by side, some of which are done
    running, finished = set(beside), dict[int, int]()
    for step in range(CHECK_EVERY, max_steps + 1, CHECK_EVERY):
        before = now[beside]
        now[beside], velocity[beside] = descend(beside, before, velocity[beside])
        loss = dict(zip(beside, losses(now[beside]).tolist(), strict=True))
        lost = [names[k] for k in beside if k in running and not isfinite(loss[k])]
        if lost:
            raise RuntimeError(f"training diverged for {lost}; lower the learning rate")
        done = [i for i, k in enumerate(beside) if k in running and loss[k] <= target_loss]
        if done:
            ended = [beside[i] for i in done]
            w[ended] = _crossing(losses, before[done], now[ended], target_loss)
            finished |= dict.fromkeys(ended, step)
            running -= set(ended)
        if not running:
            break
        if 2 * len(running) <= len(beside):
            beside = sorted(running)
    if running:
        late = {names[k]: round(full_loss(now[k]).item(), 4) for k in sorted(running)}
        raise RuntimeError(f"no training loss of {target_loss} in {max_steps} steps: {late}")
    final = losses(w).tolist()
    return [
        Checkpoint(
            name=names[k],
            configuration=configuration,
            seed=seed,
            state_dict={name: part.clone() for name, part in network.unflatten(w[k]).items()},
            training_loss=final[k],
            num_steps=finished[k],
        )
        for k, (configuration, seed) in enumerate(runs)
    ]
