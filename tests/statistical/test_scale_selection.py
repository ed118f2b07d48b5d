"""Stage 1 through the front door: the paper's prior on weights whose scales quadrature knows."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from cases.selection import NUM_MOVED, SD, Means, observed_weights, planted
from exact import laplace_gamma_posterior

import ppl_fe as fe

ALPHA, BETA, NUM_WEIGHTS = 0.01, 100.0, 1000  # α and β are the defaults of `LaplaceGamma`


def selected(scales: Literal["drawn", "expected"], seed: int) -> fe.Selection:
    data = planted(NUM_WEIGHTS, torch.Generator().manual_seed(3))
    return fe.select_parameters(
        fe.FlatNetwork(Means(NUM_WEIGHTS)),
        (torch.zeros(1, 1), data[None]),
        likelihood=observed_weights,
        rule=fe.BayesTune(
            scales=scales,
            data_size=1.0,
            num_chains=4,
            num_samples=400,
            warmup_steps=200,
            thinning=4,
        ),
        sparsity=NUM_MOVED / NUM_WEIGHTS,
        seed=seed,
        progress_bar=False,
    )


@pytest.mark.slow
def test_posterior_scales_of_moved_weights_against_quadrature() -> None:
    data = planted(NUM_WEIGHTS, torch.Generator().manual_seed(3))[:NUM_MOVED]
    exact = np.array(
        [laplace_gamma_posterior(y, SD, ALPHA, BETA).scale_mean for y in data.tolist()]
    )
    found = [selected("drawn", seed=1), selected("expected", seed=2)]
    means, errors = [], []
    for selection in found:
        assert selection.settings["alpha"] == ALPHA
        assert selection.settings["beta"] == BETA
        assert selection.scale_mean is not None
        assert selection.mcse is not None
        mean, error = (
            values[:NUM_MOVED].double().numpy() for values in (selection.scale_mean, selection.mcse)
        )
        assert (error < 0.1 * exact).all()
        assert np.abs((mean - exact) / error).max() < 4.5
        means.append(mean)
        errors.append(error)
        assert selection.mask[:NUM_MOVED].float().mean() >= 0.95
    # Different seeds: the two estimates are independent.
    both = np.sqrt(errors[0] ** 2 + errors[1] ** 2)
    assert np.abs((means[0] - means[1]) / both).max() < 4.5
    overlap = (found[0].mask & found[1].mask)[:NUM_MOVED].float().mean()
    assert overlap >= 0.95
    # E[λ | Δ] in place of λ has the smaller error.
    assert np.median(errors[1] / errors[0]) < 1
