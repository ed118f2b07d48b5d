"""Large sites keep a subset and random projections whose law follows that of the weights."""

from __future__ import annotations

import numpy as np
import torch

from ppl_fe.inference.record.recorder import BLOCK_VALUES, NUM_PROJECTIONS, NUM_SUBSET, Projection


def kept(values: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    found = Projection(values[0, 0].numel(), values.device).reduce("w", values)
    return found["w"], found["w_projection"]


def test_the_subset_is_of_the_values_and_the_same_every_time() -> None:
    values = torch.arange(1000.0).expand(2, 3, 1000)
    subset, _ = kept(values)
    assert subset.shape == (2, 3, NUM_SUBSET)
    assert len(np.unique(subset[0, 0])) == NUM_SUBSET
    assert np.array_equal(kept(values + 1)[0], subset + 1)


def test_projections_are_signed_sums_of_unit_scale_over_all_coordinates() -> None:
    size = 4007  # no multiple of sixteen
    basis = torch.eye(size)[None]  # (1, D draws, D)
    _, projections = kept(basis)
    rows = projections[0].T  # (16, D): the coefficients of each projection
    scale = (NUM_PROJECTIONS / size) ** 0.5
    for k, row in enumerate(rows):
        assert set(np.flatnonzero(row)) == set(range(k, size, NUM_PROJECTIONS))
        signs = row[k::NUM_PROJECTIONS] / scale
        np.testing.assert_allclose(np.abs(signs), 1, rtol=1e-5)
        assert abs(signs.sum()) < 4.5 * len(signs) ** 0.5  # as often plus as minus


def test_blocks_do_not_change_the_sums() -> None:
    size = BLOCK_VALUES + 48  # two blocks, the second a short one
    values = torch.randn(1, 1, size, generator=torch.Generator().manual_seed(0))
    whole = Projection(size, values.device)
    signed = (values[0, 0] * whole.signs).double()
    expected = [signed[k::NUM_PROJECTIONS].sum() for k in range(NUM_PROJECTIONS)]
    found = whole.reduce("w", values)["w_projection"][0, 0]
    np.testing.assert_allclose(
        found, np.array(expected) * (NUM_PROJECTIONS / size) ** 0.5, atol=1e-4
    )
