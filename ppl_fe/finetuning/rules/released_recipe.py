"""Stage 1 as the released BayesTune code runs it: for comparison, not for inference.

Kim & Hospedales (NeurIPS 2023) state the update

    [θ, λ] += (η/2) ∇[log p(λ) + log p(θ|λ) + (N̂/|B|) log p(B|θ)] + c √η ξ.

What github.com/minyoungkim21/BayesTune (MIT) does instead, and this file after it, is to hand

    −∇L_B(θ), clipped to norm 1,  + (1/N̂) ∂ log p(θ|λ)/∂θ  + c √(2/(N̂ η)) ξ     to AdamW, and
    (1/N̂) ∂[log p(λ) + log p(θ|λ)]/∂λ                        + c √(2/(N̂ η_λ)) ξ  to Adam,

with λ replaced by max(λ, 1e-8) wherever it is read, N̂ = 1e12, and the average of λ over kept
steps as the score. AdamW's decay of 0.01 leaves out biases and the weights of layer norms, as in
the release. Its rate is not constant: η rises in proportion to the steps over 1,000 epochs, a tenth
of the 10,000 that the released command asks for and that no run comes near, so that on MRPC (230
steps an epoch) it is 4.3e-6 where the noise sets in and 8.7e-6 after 20,000 steps, not 1e-4. The
noise of θ takes the η of its step. With fewer than 12,000 steps of warm-up the rise, like the plain
steps, is as much shorter. Left out: dropout, which `FlatNetwork` turns off,
the early stop, and transformers' own AdamW, whose ε comes before the correction of the bias.

The optimisers divide noise and prior by a running root mean square of the whole: the stationary
law is not the posterior stated, at no step size, and near temperature zero; λ ends where Adam's
steps of ±η_λ leave it, and is not monotone in |θ − anchor|. For the posterior itself take
`BayesTune`. Memory: eleven copies of the parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ppl_fe.arguments import named_arguments, require_positive
from ppl_fe.diverged import DivergedError
from ppl_fe.finetuning.custom_prior.custom_prior import check_prior
from ppl_fe.finetuning.flat_weights import WorkingCopy
from ppl_fe.finetuning.objective import Batch, shuffled
from ppl_fe.finetuning.scoring import Rule, Scores, Task
from ppl_fe.inference.run_plan import RunLength
from ppl_fe.models.priors import DEFAULT_PRIOR, LaplaceGamma
from ppl_fe.networks.flat import FlatNetwork

SCALE_LEARNING_RATE = 1e-2
INITIAL_SCALE, SMALLEST_SCALE = 1e-4, 1e-8
NOISE_DISCOUNT = 1.0  # c
LARGEST_NORM = 1.0
WARMUP_STEPS = 12_000  # of the released command
PLAIN_SHARE = 5 / 6  # of the warm-up without prior and noise: 10,000 of 12,000 steps
RISE_EPOCHS = 1_000  # over which the learning rate rises to its value
DECAY = 0.01


@named_arguments
@dataclass(frozen=True)
class ReleasedCode(Rule):
    """Score a parameter by its mean scale in the recipe of the released code.

    Its own lengths are 12,000, 80 and 100 steps, of minibatches of 16. The learning rate rises over
    1,000 epochs, as it did there, or in a shorter run over a part of them in proportion.

    Args:
        prior: `fe.models.LaplaceGamma()` by default, or with other `alpha` and `beta`.
        data_size: N̂, 1e12 by default.
        learning_rate: η of the weights at the end of its rise, 1e-4 by default; that of the scales
            is 1e-2.
        num_samples: kept λ, 100 by default.
        warmup_steps: steps before the first kept λ, 500 by default; five sixths of them are plain
            AdamW.
        thinning: steps that a kept λ costs, 10 by default.

    Raises:
        ValueError: a setting out of range; another prior.

    Example:
        >>> import ppl_fe as fe
        >>> network = fe.FlatNetwork(torch.nn.Linear(9, 1))
        >>> data = (torch.zeros(2, 9), torch.tensor([0.0, 1.0]))
        >>> rule = ReleasedCode(num_samples=3, warmup_steps=6, thinning=1)
        >>> fe.select_parameters(
        ...     network, data, likelihood="normal", rule=rule, sparsity=0.1, progress_bar=False)
        Selection(rule='released_code', 1 of 10 parameters, 10 %)
          note: the released code's recipe: its scales are not those of the stated posterior
    """

    prior: LaplaceGamma = DEFAULT_PRIOR
    data_size: float = 1e12
    learning_rate: float = 1e-4
    num_samples: int = 100
    warmup_steps: int = 500
    thinning: int = 10

    name = "released_code"

    def __post_init__(self) -> None:
        prior = check_prior(self.prior)
        if not isinstance(prior, LaplaceGamma):
            raise ValueError(
                "the released code has the prior LaplaceGamma; give that, or another rule"
            )
        object.__setattr__(self, "prior", prior)
        require_positive("data_size", self.data_size)
        require_positive("learning_rate", self.learning_rate)
        RunLength(self.num_samples, self.warmup_steps, self.thinning)  # refuses what is no length

    def score(self, task: Task) -> Scores:
        """Run the recipe and give the means of its scales.

        Raises:
            DivergedError: the loss or a gradient is not finite.
        """
        try:
            mean, sd = ReleasedRun(self, task).run()
        except DivergedError as error:
            raise DivergedError(f"the released code: {error}; lower learning_rate") from error
        own = {name: value for name, value in vars(self).items() if name != "prior"}
        prior = {"alpha": self.prior.alpha, "beta": self.prior.beta}
        settings = {**own, **prior, "batch_size": task.batch_size}
        note = "the released code's recipe: its scales are not those of the stated posterior"
        return Scores(mean, mean, sd, settings=settings, notes=(note,))


class ReleasedRun:
    """The released update, step by step.

    Args:
        rule: the settings.
        task: the network, its data, batch size and seed.

    Attributes:
        working: the weights θ.
        scale: (D,) λ.
        num_taken: steps taken so far, which say how far the learning rate has risen.
    """

    def __init__(self, rule: ReleasedCode, task: Task) -> None:
        network = task.network
        self.anchor, self.rule, self.prior = network.anchor, rule, rule.prior
        self.working = WorkingCopy(network, task.objective)
        task.objective.check(self.working.module, task.source)
        self.weights = torch.nn.Parameter(self.working.weights)
        self.gradient = self.weights.grad = torch.zeros_like(self.working.weights)
        self.scale = torch.nn.Parameter(torch.full_like(self.anchor, INITIAL_SCALE))
        self._decayed = decayed(network)
        self._optimizers = [
            torch.optim.Adam([self.weights], lr=rule.learning_rate),
            torch.optim.Adam([self.scale], lr=SCALE_LEARNING_RATE),
        ]
        epoch = -(-task.source.num_data // task.batch_size)
        self._rise = max(1.0, RISE_EPOCHS * epoch * rule.warmup_steps / WARMUP_STEPS)
        self.num_taken = 0
        self._batches = shuffled(task.source, task.batch_size, task.seed)
        self._generator = torch.Generator(network.device).manual_seed(task.seed)
        self._progress_bar = task.progress_bar

    def run(self) -> tuple[Tensor, Tensor]:
        """Take all steps; give mean and sd of the kept max(λ, 1e-8), (D,) each.

        Raises:
            DivergedError: the loss or a gradient is not finite; says where.
        """
        rule, hidden = self.rule, not self._progress_bar
        total = RunLength(rule.num_samples, rule.warmup_steps, rule.thinning).num_steps
        plain = round(PLAIN_SHARE * rule.warmup_steps)
        mean, squares = torch.zeros_like(self.anchor), torch.zeros_like(self.anchor)
        count = 0
        with tqdm(total=total, disable=hidden, desc=rule.name, unit="step", leave=False) as bar:
            for step in range(total):
                self.step(next(self._batches), plain=step < plain)
                kept = step + 1 - rule.warmup_steps
                if kept > 0 and kept % rule.thinning == 0:
                    count += 1
                    value = self.scale.detach().clamp_min(SMALLEST_SCALE)
                    deviation = value - mean
                    mean += deviation / count
                    squares += deviation * (value - mean)
                bar.update()
        return mean, (squares / max(1, count - 1)).sqrt()

    def step(self, batch: Batch, *, plain: bool) -> None:
        """Take a step of both optimisers; a plain one moves the weights alone, without prior."""
        self.working.differentiate(batch)[1].write_to(self.gradient)
        torch.nn.utils.clip_grad_norm_([self.weights], LARGEST_NORM)
        if not plain:
            self._add_prior_and_noise(self.gradient)
            self._optimizers[1].step()
        for where in self._decayed:
            self.working.weights[where] *= 1 - self.rate * DECAY
        self._optimizers[0].param_groups[0]["lr"] = self.rate
        self._optimizers[0].step()
        self.num_taken += 1

    @property
    def rate(self) -> float:
        """Give η of the present step; it is 0 at the first one."""
        return self.rule.learning_rate * min(1.0, self.num_taken / self._rise)

    def _add_prior_and_noise(self, gradient: Tensor) -> None:
        prior, n = self.prior, self.rule.data_size
        scale = self.scale.detach().clamp_min(SMALLEST_SCALE)
        offset = self.weights.detach() - self.anchor
        noise = torch.empty_like(gradient)
        gradient += offset.sign() / scale / n
        strength = NOISE_DISCOUNT * sqrt(2 / (n * self.rate)) if self.rate > 0 else 0.0
        gradient.add_(noise.normal_(generator=self._generator), alpha=strength)
        score = (prior.alpha - 1) / scale - prior.beta + offset.abs() / scale**2 - 1 / scale
        strength = NOISE_DISCOUNT * sqrt(2 / (n * SCALE_LEARNING_RATE))
        self.scale.grad = noise.normal_(generator=self._generator) * strength - score / n


def decayed(network: FlatNetwork) -> list[slice]:
    """Find the tensors that the release's weight decay acts on.

    Example:
        >>> layers = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
        >>> decayed(FlatNetwork(layers))
        [slice(0, 6, None)]
    """
    norms = {
        f"{name}.weight".lstrip(".")
        for name, module in network.module.named_modules()
        if isinstance(module, torch.nn.LayerNorm)
    }
    slices = network.slices.items()
    return [where for name, where in slices if "bias" not in name and name not in norms]
