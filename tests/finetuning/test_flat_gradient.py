"""A gradient in parts, read as the vector that it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ppl_fe.finetuning import flat_gradient
from ppl_fe.finetuning.flat_gradient import GradientParts, Rows, as_part
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


class Tokens(nn.Module):
    """An embedding, large enough to be differentiated by rows, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.layer = nn.Embedding(400, 700), nn.Linear(700, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(self.rows(x).tanh().sum(1))
        return found


def embedding(working: WorkingCopy) -> nn.Embedding:
    found = working.module.get_submodule("rows")
    assert isinstance(found, nn.Embedding)
    return found


def test_an_embedding_by_rows_has_the_bits_of_the_whole_matrix() -> None:
    torch.manual_seed(0)
    network = FlatNetwork(Tokens())
    here, elsewhere = (WorkingCopy(network, Objective("normal", network.device)) for _ in range(2))
    elsewhere.weights.add_(0.1)
    batch = torch.randint(400, (8, 5)), torch.randn(8)  # 40 tokens, some of them twice
    mean, vector = torch.randn_like(network.anchor), torch.randn_like(network.anchor)
    found = []
    for sparse in (True, False):
        for working in (here, elsewhere):
            embedding(working).sparse = sparse
        plain, other = (working.differentiate(batch)[1] for working in (here, elsewhere))
        added, squares = vector.clone(), vector.clone()
        plain.add_to(added, -2.0)
        plain.add_squares_to(squares, 3.0)
        values = [added, squares, torch.tensor(plain.dot(vector.bfloat16()))]
        corrected = plain.corrected(other, mean, network.slices.values())
        for parts in (other, corrected):
            for width in (2**18, 1000):
                memory = torch.empty(width)
                values += [
                    parts.block(slice(k, k + width), memory).clone()
                    for k in range(0, network.num_parameters - width, width)
                ]
        written = torch.empty_like(vector)
        corrected.write_to(written)
        found.append([*values, written])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert embedding(WorkingCopy(network, here.objective)).sparse


def test_rows_meet_whole_matrices_and_rows_of_other_batches() -> None:
    def rows(index: list[int], value: float) -> Rows:
        return Rows(torch.tensor(index), torch.full((len(index), 2), value))

    mean, place = torch.arange(8.0), slice(0, 8)
    expected = torch.tensor([0.0, 1, 7, 8, 1, 2, 4, 5])  # + 5 in row 1, + 5 − 8 in 2, − 2 in 3

    def corrected(other: Rows | Tensor) -> Tensor:
        parts = GradientParts([(place, rows([1, 2], 5.0))])
        found = parts.corrected(GradientParts([(place, other)]), mean, [place])
        return found.block(place, torch.empty(8))

    other = Rows(torch.tensor([2, 3]), torch.tensor([[8.0, 8.0], [2.0, 2.0]]))
    assert torch.equal(corrected(other), expected)
    assert torch.equal(corrected(torch.tensor([0.0, 0, 0, 0, 8, 8, 2, 2])), expected)
    assert torch.equal(
        GradientParts([(place, torch.tensor([0.0, 0, 5, 5, 5, 5, 0, 0]))])
        .corrected(GradientParts([(place, other)]), mean, [place])
        .block(place, torch.empty(8)),
        expected,
    )


def test_sparse_gradients_that_are_no_rows_of_a_matrix_are_read_whole() -> None:
    matrix = torch.tensor([[0.0, 2.0], [0.0, 3.0]])
    part = as_part(matrix.to_sparse(2))  # entry by entry
    assert isinstance(part, Tensor)
    assert part.tolist() == [0.0, 2.0, 0.0, 3.0]
    vector = as_part(torch.tensor([0.0, 4.0]).to_sparse(1))
    assert isinstance(vector, Tensor)
    assert vector.tolist() == [0.0, 4.0]


def test_blocks_without_rows_in_use_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three blocks of two rows the middle one is zero: it is neither read nor added."""
    monkeypatch.setattr(flat_gradient, "BLOCK", 4)
    rows = Rows(torch.tensor([0, 5]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    parts = GradientParts([(slice(2, 14), rows)])
    assert [(at.start, at.stop) for at, _ in parts._pieces()] == [(2, 6), (10, 14)]
    added = torch.zeros(14)
    parts.add_to(added, 2.0)
    assert added.tolist() == [0, 0, 2, 4, 0, 0, 0, 0, 0, 0, 0, 0, 6, 8]


def test_the_gradient_of_a_sum_lies_in_memory_like_any_other() -> None:
    """Autograd gives one number, repeated; compiled code reads what lies behind it."""
    weight = torch.ones(3, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(weight.sum(), weight)
    assert gradient.stride() == (0, 0)
    part = as_part(gradient)
    assert isinstance(part, torch.Tensor)
    assert part.is_contiguous()
    assert part.tolist() == [1.0] * 6
