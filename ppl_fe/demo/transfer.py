"""Few-shot fine-tuning of many checkpoints on many episodes, all side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ppl_fe.demo.digits import Task
from ppl_fe.free_energy.baselines.features import last_linear
from ppl_fe.networks.flat import FlatNetwork


@dataclass(frozen=True)
class Transfer:
    """Test accuracies of M checkpoints in E episodes, (M, E).

    Every checkpoint meets the same episodes and the same fresh heads, so their differences are
    known better than their levels; there is an error for each.
    """

    accuracies: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean over episodes, (M,)."""
        return self.accuracies.mean(1)

    @property
    def standard_error(self) -> Tensor:
        """Standard error of each mean, (M,)."""
        return self.accuracies.std(1) / math.sqrt(self.accuracies.shape[1])

    @property
    def paired_error(self) -> Tensor:
        """Standard error of each mean's distance from the average checkpoint, (M,)."""
        return Transfer(self.accuracies - self.accuracies.mean(0)).standard_error


def episodes(
    labels: Tensor, shots: int, num_episodes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw the indices of the support, (E, classes · shots), and of the rest to test on, (E, R)."""
    classes = sorted(set(labels.tolist()))
    support, rest = [], []
    for _ in range(num_episodes):
        order = torch.randperm(len(labels), generator=generator)
        chosen = torch.cat([order[labels[order] == c][:shots] for c in classes])
        left = torch.ones(len(labels), dtype=torch.bool).index_fill(0, chosen, False)
        support.append(chosen)
        rest.append(left.nonzero().squeeze(1))
    return torch.stack(support), torch.stack(rest)


def _repeat(values: Tensor, times: int) -> Tensor:
    """Repeat (E, ...) for each of several checkpoints: (times · E, ...)."""
    return values.repeat(times, *[1] * (values.ndim - 1))


@dataclass(frozen=True)
class FewShot:
    """How a checkpoint is fine-tuned in an episode.

    Attributes:
        shots: images of each class to train on, 5 by default.
        num_steps: full-batch gradient steps, by default 100 as published.
        head_rate: learning rate of the head, 0.5 by default.
        backbone_rate: learning rate of everything else, 0.05 by default.
    """

    shots: int = 5
    num_steps: int = 100
    head_rate: float = 0.5
    backbone_rate: float = 0.05


def transfer(
    network: FlatNetwork,
    vectors: Tensor,
    task: Task,
    how: FewShot = FewShot(),
    *,
    num_episodes: int = 100,
    seed: int = 0,
) -> Transfer:
    """Fine-tune each checkpoint with a fresh head in each episode, and test on the rest.

    An episode draws a few images of each class, replaces the last linear layer by a new one
    U(−1/√fan_in, 1/√fan_in) and takes full-batch steps w ← w − η ∇L(w) on the cross-entropy, with
    a smaller η for the backbone than for the head, as in Munn & Wei (2025).

    Args:
        network: the network the vectors belong to.
        vectors: checkpoints, (M, D).
        task: the pool of images, with as many classes as the head has outputs.
        how: shots, steps and learning rates.
        num_episodes: E, 100 by default; the standard error falls as 1/√E. With 100 it is smaller
            than the spread of the digits checkpoints even where they differ by half a per cent.
        seed: of the episodes, the heads and the noise, 0 by default; independent of the
            checkpoints.

    Returns:
        Accuracies on all images of the task outside the episode's support.

    Raises:
        ValueError: the labels do not fit the head, a class has no image left to test on, or
            there are fewer than two episodes.
        RuntimeError: fine-tuning diverges.

    Example:
        >>> network = FlatNetwork(nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 2)))
        >>> task = Task(torch.tensor([[-1.0]] * 6 + [[1.0]] * 6), torch.arange(12) // 6)
        >>> vectors = torch.linspace(-1, 1, 18).repeat(3, 1)
        >>> transfer(network, vectors, task, FewShot(shots=2), num_episodes=4).mean
        tensor([1., 1., 1.])
    """
    images, labels = task.images, task.labels
    head = network.module.get_submodule(last_linear(network))
    assert isinstance(head, nn.Linear)  # what last_linear looks for
    counts = labels.bincount()
    if len(counts) != head.out_features:
        raise ValueError(
            f"task has {len(counts)} classes and the head {head.out_features} outputs; relabel the "
            "task from 0 or choose as many classes"
        )
    if counts.min() <= how.shots:
        raise ValueError(
            f"task has {counts.tolist()} images a class; shots={how.shots} leave none to test on"
        )
    if num_episodes < 2:
        raise ValueError(f"num_episodes={num_episodes}: a standard error needs two or more")
    generator = torch.Generator().manual_seed(seed)
    support, rest = episodes(labels, how.shots, num_episodes, generator)
    shown, unseen = images[support], images[rest]
    fresh = {
        name: (2 * torch.rand(num_episodes, *shape, generator=generator) - 1)
        / math.sqrt(head.in_features)
        for name, shape in zip(network.names, network.shapes, strict=True)
        if name.rpartition(".")[0] == last_linear(network)
    }
    rates = {n: how.head_rate if n in fresh else how.backbone_rate for n in network.names}
    if task.noise > 0:
        shown = shown + task.noise * torch.randn(shown.shape, generator=generator)
        unseen = unseen + task.noise * torch.randn(unseen.shape, generator=generator)

    # Tensor by tensor: the gradient of slices of one long vector costs more than the network.
    def output(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        logits: Tensor = functional_call(network.module, weights, (x,))
        return logits

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output(weights, x), y)

    gradient, outputs = vmap(grad(loss)), vmap(output)
    accuracies = []
    # About 200 networks at once: enough to hide the cost of a call, few enough for the cache.
    for chunk in torch.split(vectors, max(1, 200 // num_episodes)):
        weights = vmap(network.unflatten)(chunk.repeat_interleave(num_episodes, 0))
        weights |= {name: _repeat(part, len(chunk)) for name, part in fresh.items()}
        x, y = _repeat(shown, len(chunk)), _repeat(labels[support], len(chunk))
        for _ in range(how.num_steps):
            slopes = gradient(weights, x, y)
            weights = {name: weights[name] - rates[name] * slopes[name] for name in weights}
        logits = outputs(weights, _repeat(unseen, len(chunk)))
        if not logits.isfinite().all():
            raise RuntimeError(
                f"fine-tuning diverged at head_rate={how.head_rate}, "
                f"backbone_rate={how.backbone_rate}; lower them"
            )
        right = logits.argmax(-1) == _repeat(labels[rest], len(chunk))
        accuracies.append(right.float().mean(1).view(len(chunk), num_episodes))
    return Transfer(torch.cat(accuracies))
