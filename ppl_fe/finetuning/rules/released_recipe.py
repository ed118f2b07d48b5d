"""Stage 1 as the released BayesTune code runs it: for comparison, not for inference.

Kim & Hospedales (NeurIPS 2023) state the update

    [θ, λ] += (η/2) ∇[log p(λ) + log p(θ|λ) + (N̂/|B|) log p(B|θ)] + c √η ξ.

What github.com/minyoungkim21/BayesTune (MIT) does instead, and this file after it, is to hand

    −∇L_B(θ), clipped to norm 1,  + (1/N̂) ∂ log p(θ|λ)/∂θ  + c √(2/(N̂ η)) ξ     to AdamW, and
    (1/N̂) ∂[log p(λ) + log p(θ|λ)]/∂λ                        + c √(2/(N̂ η_λ)) ξ  to Adam,

with λ replaced by max(λ, 1e-8) wherever it is read, N̂ = 1e12, and the average of λ over kept
steps as the score. The optimisers divide noise and prior by a running root mean square of the
whole: the stationary law is not the posterior stated, at no step size, and near temperature zero;
λ ends where Adam's steps of ±η_λ leave it, and is not monotone in |θ − anchor|. For the posterior
itself take "bayestune". Memory: eleven copies of the parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ppl_fe.data.sources import LoaderData, TensorData
from ppl_fe.finetuning.flat_weights import WorkingCopy
from ppl_fe.finetuning.objective import Batch, Objective, shuffled
from ppl_fe.networks.flat import FlatNetwork

DATA_SIZE = 1e12  # N̂
LEARNING_RATE, SCALE_LEARNING_RATE = 1e-4, 1e-2
INITIAL_SCALE, SMALLEST_SCALE = 1e-4, 1e-8
NOISE_DISCOUNT = 1.0  # c
LARGEST_NORM = 1.0
PLAIN_SHARE = 5 / 6  # of the warm-up without prior and noise: 10,000 of 12,000 steps


@dataclass(frozen=True)
class Recipe:
    """Lengths and settings of the released stage 1; its own are 12,000, 80 and 100 steps.

    Attributes:
        warmup_steps: before the first kept λ; five sixths of them plain AdamW.
        num_samples, thinning: kept λ, and the steps that each costs.
        alpha, beta: of the Gamma prior.
        data_size: N̂.
        learning_rate: η of the weights; 1e-2 for the scales.
        batch_size: B; 16 in the paper.
        seed: of noise and minibatches.
    """

    warmup_steps: int
    num_samples: int
    thinning: int
    alpha: float
    beta: float
    data_size: float
    learning_rate: float
    batch_size: int
    seed: int


class PaperRecipe:
    """The released update, step by step.

    Attributes:
        working: the weights θ.
        scale: (D,) λ.

    Example:
        >>> network = FlatNetwork(torch.nn.Linear(2, 1))
        >>> source = TensorData(torch.ones(4, 2), torch.zeros(4), 4)
        >>> recipe = Recipe(6, 5, 1, 0.01, 100.0, 1e12, 1e-3, 4, 0)
        >>> paper = PaperRecipe(network, Objective("normal", network.device), source, recipe)
        >>> mean, sd = paper.run(progress_bar=False)
        >>> mean.shape, sd.shape
        (torch.Size([3]), torch.Size([3]))
    """

    def __init__(
        self,
        network: FlatNetwork,
        objective: Objective,
        source: TensorData | LoaderData,
        recipe: Recipe,
    ) -> None:
        self.anchor, self.recipe = network.anchor, recipe
        self.working = WorkingCopy(network, objective)
        objective.check(self.working.module, source)
        self.weights = torch.nn.Parameter(self.working.weights)
        self.gradient = self.weights.grad = torch.zeros_like(self.working.weights)
        self.scale = torch.nn.Parameter(torch.full_like(self.anchor, INITIAL_SCALE))
        self._optimizers = [
            torch.optim.AdamW([self.weights], lr=recipe.learning_rate),
            torch.optim.Adam([self.scale], lr=SCALE_LEARNING_RATE),
        ]
        self._batches = shuffled(source, recipe.batch_size, recipe.seed)
        self._generator = torch.Generator(network.device).manual_seed(recipe.seed)

    def run(self, *, progress_bar: bool) -> tuple[Tensor, Tensor]:
        """Mean and sd of the kept max(λ, 1e-8), (D,) each.

        Raises:
            DivergedError: the loss or a gradient is not finite; says where.
        """
        recipe = self.recipe
        plain = round(PLAIN_SHARE * recipe.warmup_steps)
        total = recipe.warmup_steps + recipe.num_samples * recipe.thinning
        mean, squares = torch.zeros_like(self.anchor), torch.zeros_like(self.anchor)
        count = 0
        bar = tqdm(total=total, disable=not progress_bar, desc="paper", unit="step", leave=False)
        with bar:
            for step in range(total):
                self.step(next(self._batches), plain=step < plain)
                kept = step + 1 - recipe.warmup_steps
                if kept > 0 and kept % recipe.thinning == 0:
                    count += 1
                    value = self.scale.detach().clamp_min(SMALLEST_SCALE)
                    deviation = value - mean
                    mean += deviation / count
                    squares += deviation * (value - mean)
                bar.update()
        return mean, (squares / max(1, count - 1)).sqrt()

    def step(self, batch: Batch, *, plain: bool) -> None:
        """One step of both optimisers; a plain one moves the weights alone, without prior."""
        self.working.differentiate(batch)[1].write_to(self.gradient)
        torch.nn.utils.clip_grad_norm_([self.weights], LARGEST_NORM)
        if not plain:
            self._add_prior_and_noise(self.gradient)
            self._optimizers[1].step()
        self._optimizers[0].step()

    def _add_prior_and_noise(self, gradient: Tensor) -> None:
        recipe, n = self.recipe, self.recipe.data_size
        scale = self.scale.detach().clamp_min(SMALLEST_SCALE)
        offset = self.weights.detach() - self.anchor
        noise = torch.empty_like(gradient)
        gradient += offset.sign() / scale / n
        strength = NOISE_DISCOUNT * sqrt(2 / (n * recipe.learning_rate))
        gradient.add_(noise.normal_(generator=self._generator), alpha=strength)
        score = (recipe.alpha - 1) / scale - recipe.beta + offset.abs() / scale**2 - 1 / scale
        strength = NOISE_DISCOUNT * sqrt(2 / (n * SCALE_LEARNING_RATE))
        self.scale.grad = noise.normal_(generator=self._generator) * strength - score / n
