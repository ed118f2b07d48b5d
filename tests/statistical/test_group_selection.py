"""One scale for many weights under the paper's own prior, against quadrature over that scale.

At alpha = 0.01 a group is in the spike or in the slab. One that did not move has a mean scale made
by rare visits to the slab, one that moved half is on either side half the time: there a sampler
that sticks, or draws one side too often, shows.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cases.selection import SD, Rows, observed_weights
from exact import laplace_gamma_group

import ppl_fe as fe

ALPHA, BETA = 0.01, 100.0
COPIES = {1: 40, 8: 40, 64: 24}  # of every group, each by itself: their means have honest errors
HALF_MOVED = {1: (0.57, 0.61), 8: (0.25, 0.28), 64: (0.145, 0.153)}


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 8, 64])
def test_groups_that_did_not_move_moved_half_and_moved(width: int) -> None:
    amounts = torch.tensor([0.0, 0.05, *HALF_MOVED[width], 0.8])
    observed = amounts[:, None].expand(-1, width)
    copies = COPIES[width]
    exact = [laplace_gamma_group(row, SD, ALPHA, BETA) for row in observed.double().numpy()]
    shares = [group.share_null for group in exact]
    assert shares[0] > 0.95
    assert any(0.2 < share < 0.95 for share in shares[2:4])
    assert shares[-1] < 0.01
    found = fe.select_parameters(
        fe.FlatNetwork(Rows(len(amounts) * copies, width)),
        (torch.zeros(1, 1), observed.repeat(copies, 1).reshape(1, -1)),
        likelihood=observed_weights,
        rule=fe.BayesTune(
            groups="row", data_size=1.0, num_samples=200, warmup_steps=300, thinning=5
        ),
        sparsity=0.2,
        progress_bar=False,
    )
    assert found.scale_mean is not None
    assert found.mcse is not None
    scales, stated = (
        values.double().reshape(copies, len(amounts), width)[..., 0].numpy()
        for values in (found.scale_mean, found.mcse)
    )
    means, spread = scales.mean(0), scales.std(0, ddof=1)
    error = spread / math.sqrt(copies)
    truth = np.array([group.scale_mean for group in exact])
    assert (np.abs(means - truth) < 4.5 * error).all()
    assert (error < 0.2 * truth).all()
    # Each group's own run sees few changes of side; that of all of them shows what they state.
    ratio = np.sqrt(np.square(stated).mean(0)) / spread
    assert (ratio > 0.6).all()
    assert (ratio < 1.6).all()
