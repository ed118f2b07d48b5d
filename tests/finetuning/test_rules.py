"""The baseline rules against what they say they are."""

from __future__ import annotations

import pytest
import torch
from cases.selection import select
from cases.tuning import HEAD, LABELS, N, X, network
from torch import nn

from ppl_fe.diverged import DivergedError
from ppl_fe.finetuning.threshold import find_knees, largest
from ppl_fe.finetuning.train.training import finetune
from ppl_fe.networks.flat import FlatNetwork


@pytest.mark.parametrize("batch_size", [1, 7, N])
def test_gradient_squared_by_hand(batch_size: int) -> None:
    net = network()
    found = select(net, (X, LABELS), method="gradient_squared", batch_size=batch_size)

    def loss(w: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(net(w, x), y)

    grad = torch.func.grad(loss)
    if batch_size == 1:
        rows = [grad(net.anchor, X[i : i + 1], LABELS[i : i + 1]) for i in range(N)]
        torch.testing.assert_close(found.score, torch.stack(rows).square().sum(0))
    if batch_size == N:
        torch.testing.assert_close(found.score, grad(net.anchor, X, LABELS).square())
    best = found.score.topk(found.num_selected).indices
    assert found.mask[best].all()


def test_movement_is_that_of_full_fine_tuning() -> None:
    net = network()
    found = select(
        net, (X, LABELS), method="movement", num_steps=30, learning_rate=0.01, batch_size=10, seed=2
    )
    tuned = finetune(
        net, (X, LABELS), method="full", num_steps=30, learning_rate=0.01, batch_size=10, seed=2,
        progress_bar=False,
    )  # fmt: skip
    assert torch.equal(found.score, (tuned.weights - net.anchor).abs())


def test_magnitude_random_and_biases() -> None:
    net = network()
    found = select(net, (X, LABELS), method="magnitude")
    assert found.score[found.mask].min() > found.score[~found.mask].max()
    first, second, again = (
        select(net, (X, LABELS), method="random", seed=seed).mask for seed in (0, 1, 0)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    biases = select(net, (X, LABELS), method="bias_only", head=HEAD)
    assert biases.mask.nonzero()[:, 0].tolist() == list(range(20, 25))
    assert biases.notes == ("every bias is selected, 5; sparsity plays no part",)
    with pytest.raises(ValueError, match="no parameter of the network is called bias"):
        select(FlatNetwork(nn.Linear(4, 2, bias=False)), (X, LABELS), method="bias_only")


def test_a_gradient_that_is_not_finite() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.w.sqrt().expand(len(x), 2)

    with pytest.raises(DivergedError, match="gradient is not finite in w"):
        select(FlatNetwork(Root()), (X, LABELS), method="gradient_squared", sparsity=0.5)


def test_exactly_as_many_as_asked_for_in_the_order_of_the_index() -> None:
    score = torch.tensor([2.0, 1.0, 1.0, 3.0, 1.0, 0.0])
    for count, expected in ((1, [3]), (2, [0, 3]), (3, [0, 1, 3]), (4, [0, 1, 2, 3])):
        assert largest(score, count).nonzero()[:, 0].tolist() == expected
    assert largest(torch.zeros(5), 2).tolist() == [True, True, False, False, False]


def test_knees_lie_where_the_curve_bends() -> None:
    ranks = torch.arange(1, 10_001, dtype=torch.float64)
    floor = (100 / ranks).clamp_min(0.2).numpy()  # falls as 1/rank down to rank 500
    assert find_knees(floor)[0] == pytest.approx(500, rel=0.05)
    two = torch.where(ranks <= 50, 1.0, torch.where(ranks <= 3000, 1e-2, 1e-3)).numpy()
    assert find_knees(two)[0] == 50
    assert 3000 in find_knees(torch.where(ranks <= 3000, 1.0, 1e-3).numpy())
    straight = (1 / ranks).numpy()
    assert find_knees(straight) == []
