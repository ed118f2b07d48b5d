"""The reported standard errors are honest: over many seeds the truth lies where they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from exact import llc, z_score
from torch import nn

import ppl_fe as fe

NUM_SEEDS, NUM_REPLICATES = 3, 64


@pytest.mark.slow
def test_intervals_cover_and_scores_have_unit_size() -> None:
    n, step_size = 20, 0.1
    spread = torch.tensor([1.0, 0.6, 0.3])
    x = spread * torch.randn(n, 3, generator=torch.Generator().manual_seed(81))
    curvatures = np.linalg.eigvalsh((x.T @ x).double().numpy() / n)
    # Against the chain's own law at this step, so that a score holds nothing but chance.
    exact = llc(curvatures, n / math.log(n), 1.0, step_size)
    # One checkpoint under many names: as many estimates, from independent chains.
    copies = {str(k): {"weight": torch.zeros(1, 3)} for k in range(NUM_REPLICATES)}
    scores = []
    for seed in range(NUM_SEEDS):
        table = fe.rank_checkpoints(
            copies,
            nn.Linear(3, 1, bias=False),
            (x, torch.zeros(n)),
            likelihood="normal",
            batch_size=None,
            kernel=fe.SGLD,
            step_size=step_size,
            num_chains=4,
            num_samples=500,
            thinning=2,
            warmup_steps=300,
            seed=seed,
            compile="traced",
            progress_bar=False,
        )
        # The two error bars are one, in different units.
        beta = 1 / math.log(n)
        assert (beta * table["wbic_mcse"]).tolist() == pytest.approx(table["llc_mcse"].tolist())
        scores += [
            z_score(value, exact, error) for value, error in table[["llc", "llc_mcse"]].to_numpy()
        ]
    assert len(set(scores)) == NUM_SEEDS * NUM_REPLICATES
    size = math.sqrt(np.mean(np.square(scores)))
    covered = float(np.mean(np.abs(scores) < 1.96))
    print(f"{covered:.0%} of {len(scores)} intervals cover; rms score {size:.2f}")
    # Three standard errors of 192 normal scores either way: 0.05 each in the coverage ...
    assert covered > 0.90
    # ... 0.15 in the root mean square ...
    assert 0.85 < size < 1.15
    # ... and in the mean: no bias common to all.
    assert abs(float(np.mean(scores))) < 3 / math.sqrt(len(scores))
