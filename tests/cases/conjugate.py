"""Two means under N(0, 1) priors, and a probability: everything is in closed form."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

N, B = 30, 5
SD = torch.tensor([1.0, 3.0])
Y = 0.5 + SD * torch.randn(N, 2, generator=torch.Generator().manual_seed(21))

# Posterior of the means under N(0, 1) priors: curvature a and centre, coordinate by coordinate.
CURVATURE = 1 + N / SD.double().numpy() ** 2
CENTRE = Y.double().sum(0).numpy() / SD.double().numpy() ** 2 / CURVATURE
# Variance of (N/B) sum_batch (y - mean)/sd^2 for batches drawn with replacement; no w in it.
NOISE = N**2 / B * Y.double().var(0, correction=0).numpy() / SD.double().numpy() ** 4


def conjugate(y: Tensor, size: int | None) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", N, subsample_size=size):
        batch = pyro.subsample(y, event_dim=1)
        pyro.sample("y", dist.Normal(mean, SD).to_event(1), obs=batch)


# Mean and variance of Beta(16, 9), which Beta(2, 3) and 14 successes of 20 give.
PROBABILITY = 16 / 25, 16 / 25 * 9 / 25 / 26


def probability() -> None:
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    pyro.sample("k", dist.Binomial(20, p), obs=torch.tensor(14.0))
