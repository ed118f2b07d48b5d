"""Power iteration against matrices whose eigenvalues are known, and when it is left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ppl_fe as fe
from ppl_fe.inference.warmup.curvature import LATER_ITERATIONS, power_iteration
from ppl_fe.inference.warmup.step_size import Adaptation

DOUBLE = torch.float64


def test_chains_find_their_own_largest_curvature_whatever_its_sign() -> None:
    sizes = torch.tensor([[1.0, 2.0, 5.0], [0.1, -40.0, 3.0]], dtype=DOUBLE)
    start = torch.ones(2, 3, dtype=DOUBLE)
    curvature, direction = power_iteration(
        lambda v, _: sizes * v, start, torch.ones(2, 1, dtype=DOUBLE), 60
    )
    torch.testing.assert_close(curvature[:, 0], torch.tensor([5.0, 40.0], dtype=DOUBLE))
    along = direction.abs() / direction.abs().amax(1, keepdim=True)
    torch.testing.assert_close(along, torch.eye(3, dtype=DOUBLE)[[2, 1]])


def test_a_product_of_zero_changes_nothing() -> None:
    """One chain is flat on every minibatch; the other on the last one, after its curvature."""
    seen: list[Tensor] = []

    def product(vector: Tensor, curvature: Tensor) -> Tensor:
        seen.append(curvature.clone())
        sizes = torch.tensor([[0.0], [7.0 if len(seen) < 3 else 0.0]], dtype=DOUBLE)
        return sizes * vector

    start = torch.tensor([[3.0, 4.0], [1.0, 0.0]], dtype=DOUBLE)
    guess = torch.tensor([[2.0], [2.0]], dtype=DOUBLE)
    curvature, direction = power_iteration(product, start, guess, 3)
    assert [c[:, 0].tolist() for c in seen] == [[2.0, 2.0], [2.0, 7.0], [2.0, 7.0]]
    assert curvature[:, 0].tolist() == [2.0, 7.0]
    torch.testing.assert_close(direction, torch.tensor([[0.6, 0.8], [1.0, 0.0]], dtype=DOUBLE))


def test_a_single_vector_is_iterated_in_the_memory_of_its_start() -> None:
    start, guess = torch.tensor([3.0, 4.0]), torch.tensor([1e9], dtype=DOUBLE)
    curvature, direction = power_iteration(lambda v, _: 2 * v, start, guess, 1)
    assert direction.data_ptr() == start.data_ptr()
    assert curvature.dtype == DOUBLE  # of the guess, which float32 might not hold
    assert abs(curvature.item() - 2.0) < 1e-6


@pytest.mark.parametrize("step_size", [1e-3, "auto"])
def test_what_would_change_no_setting_is_not_measured(
    step_size: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """About w* with exact gradients a friction follows from the localiser; a step does not."""
    torch.manual_seed(0)
    inputs = torch.randn(50, 3)
    network = fe.FlatNetwork(nn.Linear(3, 1))

    def drawn() -> Any:
        found = fe.estimate_free_energy(
            network, (inputs, inputs[:, 0]), likelihood="normal", kernel=fe.BAOAB,
            batch_size=None, step_size=step_size, num_samples=10, warmup_steps=40, thinning=1,
            localization=10.0, num_chains=2, compile="traced", progress_bar=False,
        )  # fmt: skip
        return found.draws

    short = drawn()
    monkeypatch.setattr(Adaptation, "_is_known", lambda _: False)
    long = drawn()
    np.testing.assert_array_equal(short.sample_stats["loss"], long.sample_stats["loss"])
    rounds = 40 // 8 + 3  # every eighth step, and the first, second and fourth
    saved = 2 * LATER_ITERATIONS * (0 if step_size == "auto" else rounds)
    assert long.attrs["num_gradients"] - short.attrs["num_gradients"] == saved
