"""Networks of one training configuration, all its seeds side by side, to one training loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from ppl_fe.demo.pretraining import Configuration
from ppl_fe.inference.step.compile import TensorFunction, trace
from ppl_fe.networks.flat import FlatNetwork

Data = tuple[Tensor, Tensor]
CHUNK = 1000
# The full loss is taken once an epoch. In the epoch that reaches the target, it is taken at this
# many points, and the first stretch below the target is shortened along its chord: a chord is
# close to a path of SGD only if it is short.
POINTS_AN_EPOCH = 10


@dataclass(frozen=True)
class Pretrained:
    """S networks of one configuration.

    Attributes:
        vectors: (S, D).
        losses: mean cross-entropy over all the pretraining data, (S,); NaN if not at the target.
        epochs: passes over the data each took, (S,).
    """

    vectors: Tensor
    losses: Tensor
    epochs: Tensor


def full_loss(network: FlatNetwork, vectors: Tensor, data: Data) -> Tensor:
    """(S, D) -> mean cross-entropy of each on all the data, (S,)."""
    inputs, targets = data

    def loss(vector: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(network(vector, x), y, reduction="sum")

    total = torch.zeros(len(vectors), device=vectors.device)
    with torch.no_grad():
        for x, y in zip(torch.split(inputs, CHUNK), torch.split(targets, CHUNK), strict=True):
            total += vmap(loss, in_dims=(0, None, None))(vectors, x, y)
    return total / len(inputs)


def initial_vectors(build: Callable[[], nn.Module], entropies: list[list[int]]) -> Tensor:
    """A fresh network for each list of numbers, (S, D)."""
    vectors = []
    for entropy in entropies:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
            vectors.append(FlatNetwork(build()).anchor)
    return torch.stack(vectors)


def pretrain(
    build: Callable[[], nn.Module],
    network: FlatNetwork,
    data: Data,
    configuration: Configuration,
    num_seeds: int,
    *,
    target_loss: float,
    max_epochs: int,
    seed: int,
) -> Pretrained:
    """v ← μv + ∇L_B(w), w ← w − ηv, until L_n(w) = target.

    Batches are drawn with replacement; every network has a start and batches of its own. A network
    that diverges or is late comes back with a loss of NaN, to be reported, not dropped in silence.
    """
    inputs, targets = data
    settings = (configuration.learning_rate, configuration.batch_size, configuration.momentum)
    own = [[seed, k, *(round(1e6 * value) for value in settings)] for k in range(num_seeds)]
    w = initial_vectors(build, own).to(inputs.device)
    numbers = int(np.random.SeedSequence([1, *chain(*own)]).generate_state(1)[0])
    generator = torch.Generator().manual_seed(numbers)

    def batch_loss(vector: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(network(vector, x), y)

    def step(w: Tensor, v: Tensor, x: Tensor, y: Tensor) -> list[Tensor]:
        v = configuration.momentum * v + vmap(grad(batch_loss))(w, x, y)
        return [w - configuration.learning_rate * v, v]

    size = configuration.batch_size
    stretch = max(1, len(inputs) // size // POINTS_AN_EPOCH)
    finished, losses = torch.zeros_like(w), torch.full((num_seeds,), torch.nan)
    epochs = torch.full((num_seeds,), torch.nan)
    running, v = torch.arange(num_seeds), torch.zeros_like(w)
    advance: TensorFunction | None = None
    for epoch in range(max_epochs):
        path = [w]
        for number in range(stretch * POINTS_AN_EPOCH):
            index = torch.randint(len(inputs), (len(running), size), generator=generator)
            index = index.to(inputs.device)
            arguments = [w, v, inputs[index], targets[index]]
            if advance is None:
                advance = trace(step, arguments)
            w, v = advance(*arguments)
            if (number + 1) % stretch == 0:
                path.append(w)
        loss = full_loss(network, w, data)
        finite = loss.isfinite()
        done = (loss <= target_loss) & finite
        for place in done.nonzero()[:, 0].tolist():
            who = running[place]
            points = torch.stack([point[place] for point in path])
            finished[who] = _first_crossing(network, points, data, target_loss)
            losses[who] = full_loss(network, finished[who][None], data)[0]
            epochs[who] = epoch + 1
        keep = finite & ~done
        if not keep.all():
            w, v, running, advance = w[keep], v[keep], running[keep.cpu()], None
        if len(running) == 0:
            break
    finished[running] = w
    return Pretrained(finished, losses, epochs)


def _first_crossing(network: FlatNetwork, path: Tensor, data: Data, target: float) -> Tensor:
    """Where on the path (P, D), joined by chords, the loss has first reached the target, (D,)."""
    below = full_loss(network, path[1:], data) <= target
    first = int(below.nonzero()[0, 0])
    before, after = path[first : first + 1], path[first + 1 : first + 2]
    above, reached = 0.0, 1.0
    for _ in range(20):
        middle = (above + reached) / 2
        if full_loss(network, before + middle * (after - before), data).item() > target:
            above = middle
        else:
            reached = middle
    return (before + reached * (after - before))[0]
