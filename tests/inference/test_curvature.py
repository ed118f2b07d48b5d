"""Power iteration against matrices whose eigenvalues are known."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_fe.inference.warmup.curvature import power_iteration

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
