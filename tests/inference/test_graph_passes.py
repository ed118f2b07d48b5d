"""A rewritten graph is the same function: narrow products turned, whatever looks at the result."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_fe as fe
from ppl_fe.inference.step.compile import CompileMode, TensorFunction, compile_graph, trace
from ppl_fe.inference.step.graph_passes import with_constants

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


def triangles(x: Tensor, w: Tensor) -> list[Tensor]:
    """Numbers into and out of a triangle, by a mask that no input changes, and its gradient."""
    below = torch.arange(8) < torch.arange(8)[:, None]

    def sums(v: Tensor) -> Tensor:
        square = torch.zeros_like(x[:, :8])
        square[:, below] = v.flatten(1)[:, :28]
        return (square.square() + square)[:, below].cos().sum()

    return [torch.func.grad(sums)(w)]


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


FUNCTIONS = [log_softmax, flattened, split, gradient, likelihood, triangles]


@pytest.mark.parametrize(
    ("function", "mode"),
    [
        *((function, "traced") for function in FUNCTIONS),
        *(
            pytest.param(function, "compiled", marks=pytest.mark.thorough)
            for function in FUNCTIONS[:4]
        ),
        *((function, "compiled") for function in FUNCTIONS[4:]),
    ],
)
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


def test_a_mask_becomes_the_places_it_chooses_unless_an_input_changes_it() -> None:
    def masks(function: TensorFunction) -> int:
        nodes = trace(function, [X, W]).graph.nodes
        indexing = [node for node in nodes if str(node.target).startswith("aten.index")]
        assert indexing
        used = [index for node in indexing for index in node.args[1] if index is not None]
        return sum(index.meta["val"].dtype == torch.bool for index in used)

    assert masks(triangles) == 0
    assert masks(lambda x, w: [x[x > 0].sum()]) == 1


def written_constants(x: Tensor, w: Tensor) -> list[Tensor]:
    """Zeros that are written to through a view, next to numbers that no input changes."""
    memory = torch.zeros(3, 8, dtype=x.dtype)
    memory[:, 0] += x[:, 0, 0]
    scale = torch.full((8,), 2.0, dtype=x.dtype).log().square() + 1.0
    halves, several = (torch.zeros(3, 8, dtype=x.dtype) for _ in range(2))
    torch.split(halves, 4, 1)[1].add_(x[:, 1, :4])
    torch._foreach_add_([several], [x[:, 0]])
    return [memory.view(24) * scale.repeat(3), w.sum() * scale, 2 * halves, 2 * several]


def test_a_mask_that_is_written_in_place_selects_what_it_says() -> None:
    def selected(x: Tensor) -> list[Tensor]:
        mask = torch.zeros(8, dtype=torch.bool)
        mask[2:5] = True
        mask[7] = True
        places = mask.nonzero()[:, 0]
        return [x[..., mask].sum(-1), x[..., places]]

    for run in (trace(selected, [X]), with_constants(trace(selected, [X]))):
        for found, expected in zip(run(X), selected(X), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_what_no_input_changes_is_computed_once() -> None:
    plain = trace(written_constants, [X, W])
    once = with_constants(plain)
    assert len(once.graph.nodes) < len(plain.graph.nodes)
    assert not once.graph.find_nodes(op="call_function", target=torch.ops.aten.log.default)
    for k in range(3):  # nothing that was written stays
        for found, expected in zip(once(X + k, W), written_constants(X + k, W), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "mode",
    [
        "eager",
        pytest.param(
            "compiled",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler"),
            ],
        ),
    ],
)
def test_a_program_with_a_correlation(mode: CompileMode) -> None:
    def model() -> None:
        pyro.sample("factor", dist.LKJCholesky(3, 2.0))

    options: dict[str, Any] = {"num_samples": 12, "warmup_steps": 2, "progress_bar": False}
    kernel = fe.SGLD(model, step_size=0.01)
    found = [fe.sample(kernel, compile=how, **options) for how in (mode, "traced")]
    assert [tree.attrs["compile"] for tree in found] == [mode, "traced"]
    other, traced = (tree.posterior["factor"].values for tree in found)
    np.testing.assert_allclose(other, traced, atol=1e-4)


def test_a_mask_kept_with_the_graph_is_known_and_a_random_one_is_not() -> None:
    chosen = torch.tensor([True, False, True])

    def masked(x: Tensor, w: Tensor) -> list[Tensor]:
        return [x.flatten()[:3][chosen]]

    def by_chance(x: Tensor, w: Tensor) -> list[Tensor]:
        return [x.flatten()[:3][torch.ones(3).bernoulli() > 0.5].sum()]

    def kinds(function: TensorFunction) -> set[torch.dtype]:
        nodes = trace(function, [X, W]).graph.nodes
        indexing = [node for node in nodes if str(node.target).startswith("aten.index")]
        return {index.meta["val"].dtype for node in indexing for index in node.args[1] if index}

    assert kinds(masked) == {torch.int64}
    assert kinds(by_chance) == {torch.bool}
    torch.testing.assert_close(trace(masked, [X, W])(X, W), masked(X, W))
