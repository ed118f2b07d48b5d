"""Short fine-tunes of every checkpoint, judged on labels that they have not seen.

Each is fine-tuned once for each fold of the labels, without it, and at each of several learning
rates, whose results are averaged and not chosen among: with few labels a choice by them would be
chance. All of it runs side by side. After each round the worse half of the checkpoints stops, and
the others go on for twice as many steps (successive halving, Karnin, Koren & Somekh 2013), so that
every round costs the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, inf
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_fe.data.sources import TensorData
from ppl_fe.free_energy.downstream.labels import folds, is_classes
from ppl_fe.free_energy.downstream.prediction_scores import Measured, score
from ppl_fe.free_energy.downstream.zero_shot import losses
from ppl_fe.inference.program.density import Density
from ppl_fe.models.localized import LocalPosterior
from ppl_fe.networks.flat import FlatNetwork

NUM_FOLDS = 5
LEARNING_RATES = (0.02, 0.06)  # of Adam, in standard deviations of each weight's prior
FIRST_STEPS = 20
LEAST_LEFT = 2  # checkpoints that no round stops any more
UNSEEN = 1e-12  # weight of a held-out row: a power of the likelihood has to be positive
BETAS, DAMPING = (0.9, 0.999), 1e-8


class Finetuned(NamedTuple):
    """What one checkpoint came to: held-out loss and score, after so many steps."""

    loss: Measured
    score: Measured
    num_steps: int


class ShortFinetunes:
    """Adam on the posterior of each checkpoint, fold and rate, side by side.

    Args:
        program: the posterior at β = 1 with all the data in a step: its prior keeps the backbone
            near its checkpoint and the head near zero.
        network: the architecture, and the buffers that the checkpoints share.
        anchors: (G, D) checkpoints.
        source: the labelled data, N rows.
    """

    def __init__(
        self, program: LocalPosterior, network: FlatNetwork, anchors: Tensor, source: TensorData
    ) -> None:
        self.program, self.network, self.source = program, network, source
        fold = folds(source.targets, NUM_FOLDS)
        self.held_out = fold[None] == torch.arange(int(fold.max()) + 1)[:, None]  # (F, N)
        weights = torch.where(self.held_out, UNSEEN, 1.0).to(anchors)
        each = len(LEARNING_RATES) * len(weights)
        centers = program.center(anchors)
        own = centers.repeat_interleave(each, 0)  # of each checkpoint rate after rate
        self.w = program.position(own)
        self.rates = torch.tensor(LEARNING_RATES).to(anchors).repeat_interleave(len(weights))
        self.density = Density(
            program,
            (source.inputs, source.targets),
            chain_kwargs={
                "anchor": own,
                "inverse_temperature": weights.repeat(len(LEARNING_RATES) * len(anchors), 1),
            },
        )
        self.values = self.density.chain_values
        self.mean, self.square = torch.zeros_like(self.w), torch.zeros_like(self.w)
        self.num_steps = 0

    @property
    def each(self) -> int:
        """Give the number of fine-tunes of a checkpoint."""
        return len(LEARNING_RATES) * len(self.held_out)

    def advance(self, num_steps: int) -> None:
        """Take steps of Adam (Kingma & Ba 2015) with all of them."""
        rates = self.rates.repeat(len(self.w) // self.each)[:, None]
        for _ in range(num_steps):
            self.num_steps += 1
            gradient, _ = self.density.batched_gradient(
                self.density, self.w, (), self.values, self.density.tensors
            )
            self.mean = BETAS[0] * self.mean + (1 - BETAS[0]) * gradient
            self.square = BETAS[1] * self.square + (1 - BETAS[1]) * gradient.square()
            mean = self.mean / (1 - BETAS[0] ** self.num_steps)
            square = self.square / (1 - BETAS[1] ** self.num_steps)
            self.w = self.w + rates * mean / (square.sqrt() + DAMPING)

    def keep(self, places: Sequence[int]) -> None:
        """Go on with some of the checkpoints alone."""
        rows = torch.cat([torch.arange(k * self.each, (k + 1) * self.each) for k in places])
        self.w, self.mean, self.square = self.w[rows], self.mean[rows], self.square[rows]
        self.values = tuple(value[rows] for value in self.values)

    def results(self) -> list[Finetuned]:
        """Judge each checkpoint by what its fine-tunes say of the rows that they have not seen."""
        targets, shape = self.source.targets, (-1, len(LEARNING_RATES), len(self.held_out))
        with torch.no_grad():
            outputs = self.density.outside_steps(
                lambda position, center: self.network(
                    self.program.weights(position, center), self.source.inputs
                ),
                self.w,
                self.values[0],
                in_dims=(0, 0),
            )
        outputs = outputs.reshape(*shape, *outputs.shape[1:])
        fold = self.held_out.long().argmax(0)
        rows = torch.arange(len(targets))
        unseen = outputs[:, :, fold, rows]  # (G, rates, N, ...)
        found = []
        for own in unseen:
            each = torch.stack([losses(self.program.likelihood, one, targets) for one in own])
            predictions = own.softmax(-1).mean(0).argmax(-1) if is_classes(targets) else own.mean(0)
            found.append(
                Finetuned(Measured.mean(each.mean(0)), score(predictions, targets), self.num_steps)
            )
        return found


def by_halves(lots: Mapping[tuple[str, ...], ShortFinetunes]) -> dict[str, Finetuned]:
    """Fine-tune all checkpoints, and stop the worse half after each round.

    Args:
        lots: names of checkpoints that share their buffers -> their fine-tunes.

    Returns:
        Name -> what it had come to when it was stopped, or at the end.
    """
    left = {names: list(names) for names in lots}
    found: dict[str, Finetuned] = {}
    num_steps = FIRST_STEPS
    while True:
        running: dict[str, Finetuned] = {}
        for names, own in left.items():
            if own:
                lots[names].advance(num_steps - lots[names].num_steps)
                running |= dict(zip(own, lots[names].results(), strict=True))
        found |= running
        if len(running) <= LEAST_LEFT:
            return found
        order = sorted(running, key=lambda name: _finite(running[name].loss.value))
        best = set(order[: max(LEAST_LEFT, ceil(len(order) / 2))])
        for names, own in left.items():
            places = [k for k, name in enumerate(own) if name in best]
            if places:
                lots[names].keep(places)
            left[names] = [own[k] for k in places]
        num_steps *= 2


def _finite(value: float) -> float:
    return value if abs(value) < inf else inf
