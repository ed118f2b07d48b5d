"""Fine-tuning of every checkpoint on the same downstream episodes, each with a fresh head."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ppl_fe.demo.transfer import Transfer
from ppl_fe.inference.step.compile import build
from ppl_fe.networks.flat import FlatNetwork

HEAD = "head"
NETWORKS_AT_ONCE = 25


@dataclass(frozen=True)
class Episodes:
    """E episodes of one downstream task, the same for all checkpoints.

    Attributes:
        shown, shown_labels: to fine-tune on, (E, S, 3, 32, 32) and (E, S).
        unseen, unseen_labels: to test on, (E, Q, 3, 32, 32) and (E, Q).
        num_classes: of the fresh head.
        batch_size: of a step; None takes all S.
    """

    shown: Tensor
    shown_labels: Tensor
    unseen: Tensor
    unseen_labels: Tensor
    num_classes: int
    batch_size: int | None = None


def draw_episodes(
    data: tuple[Tensor, Tensor],
    *,
    ways: int,
    shots: int,
    tests: int,
    num_episodes: int,
    seed: int,
    noise: float = 0.0,
    batch_size: int | None = None,
) -> Episodes:
    """Each episode: some classes, `shots` images of each to learn from and `tests` to test on.

    Args:
        data: the pool, images and labels.
        ways: classes an episode, drawn anew in each.
        noise: standard deviation of Gaussian noise added to every pixel, in standardised units.
    """
    images, labels = data
    generator = torch.Generator().manual_seed(seed)
    members = [(labels == c).nonzero()[:, 0].cpu() for c in range(int(labels.max()) + 1)]
    shown, unseen = [], []
    for _ in range(num_episodes):
        for c in torch.randperm(len(members), generator=generator)[:ways].tolist():
            order = torch.randperm(len(members[c]), generator=generator)
            shown.append(members[c][order[:shots]])
            unseen.append(members[c][order[shots : shots + tests]])

    def gathered(rows: list[Tensor]) -> Tensor:
        index = torch.cat(rows).view(num_episodes, -1)
        clean = images[index.to(images.device)]
        return clean + noise * torch.randn(clean.shape, generator=generator).to(images.device)

    def numbered(each: int) -> Tensor:
        own = torch.arange(ways, device=images.device).repeat_interleave(each)
        return own.expand(num_episodes, -1)

    return Episodes(
        gathered(shown), numbered(shots), gathered(unseen), numbered(tests), ways, batch_size
    )


def fine_tune(
    network: FlatNetwork,
    vectors: Tensor,
    episodes: Episodes,
    *,
    num_steps: int,
    head_rate: float,
    backbone_rate: float,
    seed: int,
) -> Transfer:
    """w ← w − η∇L_B(w) from each checkpoint (M, D) with a fresh head; test accuracies (M, E).

    The backbone moves too, at a smaller rate (Munn & Wei 2025: 100 steps). All checkpoints meet the
    same episodes, heads and batches.

    Raises:
        RuntimeError: fine-tuning diverged.
    """
    module = network.module
    generator = torch.Generator().manual_seed(seed)
    num_episodes, num_shown = episodes.shown_labels.shape
    head = module.get_submodule(HEAD)
    assert isinstance(head, nn.Linear)  # both architectures name theirs so
    classes, bound = episodes.num_classes, 1 / math.sqrt(head.in_features)
    shapes = {f"{HEAD}.weight": (classes, head.in_features), f"{HEAD}.bias": (classes,)}
    fresh = {
        name: (bound * (2 * torch.rand(num_episodes, *shape, generator=generator) - 1)).to(vectors)
        for name, shape in shapes.items()
    }
    size = episodes.batch_size or num_shown
    batches = None
    if episodes.batch_size is not None:
        drawn = torch.randint(num_shown, (num_steps, num_episodes, size), generator=generator)
        batches = drawn.to(vectors.device)

    def logits(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        output: Tensor = functional_call(module, weights, (x,))
        return output

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits(weights, x), y)

    names = list(network.names)
    rates = [head_rate if name in fresh else backbone_rate for name in names]

    def step(*arguments: Tensor) -> list[Tensor]:
        *values, x, y = arguments
        slopes = vmap(grad(loss))(dict(zip(names, values, strict=True)), x, y)
        return [
            value - rate * slopes[name]
            for name, value, rate in zip(names, values, rates, strict=True)
        ]

    accuracies = torch.empty(len(vectors), num_episodes)
    for start in range(0, num_episodes, NETWORKS_AT_ONCE):
        some = slice(start, min(start + NETWORKS_AT_ONCE, num_episodes))
        number = some.stop - some.start
        shown, labels = episodes.shown[some], episodes.shown_labels[some]
        rows = torch.arange(number, device=vectors.device)[:, None]
        advance = None
        for checkpoint, vector in enumerate(vectors):
            weights = [
                fresh[name][some]
                if name in fresh
                else part.expand(number, *part.shape).contiguous()
                for name, part in network.unflatten(vector).items()
            ]
            x, y = shown, labels
            for index in range(num_steps):
                if batches is not None:
                    x, y = shown[rows, batches[index, some]], labels[rows, batches[index, some]]
                if advance is None:
                    calls = num_steps * len(vectors)
                    advance = build(step, [*weights, x, y], "auto", calls).run
                weights = list(advance(*weights, x, y))
            with torch.no_grad():
                tuned = dict(zip(names, weights, strict=True))
                found = vmap(logits)(tuned, episodes.unseen[some])
            if not found.isfinite().all():
                raise RuntimeError(
                    f"fine-tuning diverged at head_rate={head_rate}, "
                    f"backbone_rate={backbone_rate}; lower them"
                )
            right = found.argmax(-1) == episodes.unseen_labels[some]
            accuracies[checkpoint, some] = right.float().mean(1).cpu()
    return Transfer(accuracies)
