"""A gradient in parts, read as the vector that it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ppl_fe.finetuning.flat_gradient import GradientParts
from ppl_fe.finetuning.flat_weights import WorkingCopy
from ppl_fe.finetuning.objective import Objective
from ppl_fe.networks.flat import FlatNetwork

WIDTH = 12


@pytest.fixture
def whole() -> Tensor:
    values = torch.arange(1.0, WIDTH + 1)
    values[3:5] = values[9:] = 0  # no tensor's
    return values


@pytest.fixture
def parts(whole: Tensor) -> GradientParts:
    places = [slice(5, 9), slice(0, 2), slice(2, 3)]  # in whatever order autograd had them
    return GradientParts([(place, whole[place].clone()) for place in places])


@pytest.mark.parametrize("width", [1, 2, 3, 4, 6, 12])
def test_blocks_of_any_width(parts: GradientParts, whole: Tensor, width: int) -> None:
    memory = torch.full((width,), float("nan"))
    blocks = [parts.block(slice(k, k + width), memory).clone() for k in range(0, WIDTH, width)]
    assert torch.equal(torch.cat(blocks), whole)


def test_a_block_within_one_tensor_is_not_copied(parts: GradientParts) -> None:
    memory = torch.full((2,), float("nan"))
    assert parts.block(slice(6, 8), memory).tolist() == [7, 8]
    assert memory.isnan().all()


def test_arithmetic_is_that_of_the_vector(parts: GradientParts, whole: Tensor) -> None:
    vector = torch.linspace(-1, 1, WIDTH)
    assert parts.dot(vector) == pytest.approx(float(vector @ whole))
    added, squares, written = vector.clone(), vector.clone(), vector.clone()
    parts.add_to(added, -2.0)
    parts.add_squares_to(squares, 3.0)
    parts.write_to(written)
    torch.testing.assert_close(added, vector - 2 * whole)
    torch.testing.assert_close(squares, vector + 3 * whole**2)
    assert torch.equal(written, whole)


def test_nothing_at_all_is_zero() -> None:
    assert GradientParts([]).block(slice(0, 3), torch.ones(3)).tolist() == [0, 0, 0]
    assert GradientParts([]).dot(torch.ones(3)) == 0


class Half(nn.Module):
    """A layer in use and one that is not; and an embedding, of sparse gradient or not."""

    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(3, 1), nn.Linear(2, 2)
        self.rows = nn.Embedding(4, 3, sparse=sparse)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.used(self.rows(x))
        return found


def test_the_gradient_of_a_working_copy_is_autograds() -> None:
    network = FlatNetwork(Half(sparse=True))
    batch = torch.tensor([0, 2, 2]), torch.zeros(3)
    loss, gradient = WorkingCopy(network, Objective("normal", network.device)).differentiate(batch)
    vector = network.anchor.clone().requires_grad_(True)
    dense = FlatNetwork(Half(sparse=False))
    expected = 0.5 * dense(vector, batch[0])[:, 0].square().mean()
    (exact,) = torch.autograd.grad(expected, vector)
    found = gradient.block(slice(0, network.num_parameters), torch.empty_like(exact))
    torch.testing.assert_close(found, exact)
    constant = loss - expected.item()
    assert constant == pytest.approx(0.5 * torch.log(torch.tensor(2 * torch.pi)).item(), abs=1e-5)
