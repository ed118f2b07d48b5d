"""A rewritten graph is the same function: narrow products turned, whatever looks at the result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_fe.inference.compile import TensorFunction, compile_graph, trace

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(3, 40, 8, generator=GENERATOR, dtype=torch.float64)
W = torch.randn(3, 5, 8, generator=GENERATOR, dtype=torch.float64)


def log_softmax(x: Tensor, w: Tensor) -> list[Tensor]:
    return [torch.log_softmax(x @ w.transpose(1, 2), -1).sum(-1)]


def flattened(x: Tensor, w: Tensor) -> list[Tensor]:
    """A view that memory in another order does not have."""
    return [(x @ w.transpose(1, 2)).tanh().view(3, 200) * 2.0]


def split(x: Tensor, w: Tensor) -> list[Tensor]:
    """As of sequences: (B, L) are one dimension of the product and two afterwards."""
    return [(x @ w.transpose(1, 2)).view(3, 10, 4, 5).sum(2)]


def gradient(x: Tensor, w: Tensor) -> list[Tensor]:
    loss = torch.func.grad(lambda v: log_softmax(x, v)[0][:, ::3].sum())
    return [loss(w)]


def likelihood(x: Tensor, w: Tensor) -> list[Tensor]:
    """The gradient of picked log-probabilities, as of a classifier."""
    labels = torch.arange(40).expand(3, 40)[..., None] % 5

    def picked(v: Tensor) -> Tensor:
        return torch.log_softmax(x @ v.transpose(1, 2), -1).gather(-1, labels).square().sum()

    return [torch.func.grad(picked)(w)]


def columns_of_products(function: TensorFunction) -> list[int]:
    """Of the batched products that the traced graph runs, in order."""
    graph = trace(function, [X, W])
    seen: list[int] = []

    class Watch(torch.fx.Interpreter):
        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            result = super().call_function(target, args, kwargs)
            if target is torch.ops.aten.bmm.default:
                seen.append(result.shape[-1])
            return result

    Watch(graph).run(X, W)
    return seen


def test_narrow_products_and_no_others_are_turned() -> None:
    assert columns_of_products(log_softmax) == [40]
    assert columns_of_products(lambda x, w: [x.transpose(1, 2) @ x]) == [8]
    assert columns_of_products(lambda x, w: [w @ x.transpose(1, 2)]) == [40]


@pytest.mark.parametrize("function", [log_softmax, flattened, split, gradient, likelihood])
@pytest.mark.parametrize("mode", ["traced", "compiled"])
def test_it_is_the_same_function(function: TensorFunction, mode: str) -> None:
    graph = trace(function, [X, W])
    run = graph if mode == "traced" else compile_graph(graph, [X, W])
    torch.testing.assert_close(run(X, W), function(X, W), rtol=1e-12, atol=1e-12)


def test_a_write_to_one_entry_becomes_a_comparison() -> None:
    def targets(function: TensorFunction) -> list[object]:
        return [node.target for node in trace(function, [X, W]).graph.nodes]

    aten = torch.ops.aten
    assert aten.scatter_add.default not in targets(likelihood)
    assert aten.where.self in targets(likelihood)

    def several(x: Tensor, w: Tensor) -> list[Tensor]:
        places = torch.zeros(3, 2, 8, dtype=torch.int64)
        return [x[:, :1].new_zeros(3, 5, 8).scatter_add(1, places, w[:, :2])]

    assert aten.scatter_add.default in targets(several)
    torch.testing.assert_close(trace(several, [X, W])(X, W), several(X, W))
