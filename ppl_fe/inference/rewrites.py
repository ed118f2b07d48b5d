"""Rewritings of a traced graph that leave its function as it is and make it quicker to run."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

aten = torch.ops.aten

# Matrix products of fewer columns than this run at a quarter of the speed on a processor: its
# vectors of 16 numbers lie along the columns.
NARROW = 16
# Classes up to which a pass over all of them is quicker than a write to one.
FEW = 64


def inline_literals(graph: GraphModule) -> None:
    """Make numbers of the tensors that the program itself wrote (a prior's scale, say).

    As attributes they are inputs of the compiled kernel, which then takes their logarithms and
    quotients anew at every vector of coordinates; as numbers they are folded beforehand.
    """
    for node in graph.graph.find_nodes(op="get_attr"):
        value = getattr(graph, node.target)
        literal = all(user.target is aten.lift_fresh_copy.default for user in node.users)
        if not isinstance(value, Tensor) or value.dim() > 0 or not literal:
            continue
        with graph.graph.inserting_before(node):
            number = graph.graph.call_function(
                aten.full.default,
                ([], value.item()),
                {"dtype": value.dtype, "device": value.device},
            )
        node.replace_all_uses_with(number)
        graph.graph.erase_node(node)
    graph.recompile()


def turn_narrow_products(graph: GraphModule) -> None:
    """Take a batched product with few columns as (BᵀAᵀ)ᵀ, rows and columns in each other's place.

    The last layer of a classifier is one. What follows it (the softmax) then runs along the data
    rather than along the few classes: the step of benchmarks/step.py gets 10 to 20 % quicker.
    """
    turned = False
    for node in graph.graph.find_nodes(op="call_function", target=aten.bmm.default):
        rows, columns = node.meta["val"].shape[1:]
        if not 1 < columns < NARROW <= rows:
            continue
        _turn(graph, node)
        turned = True
    if turned:
        _allow_any_strides(graph)
    graph.recompile()


def spread_single_writes(graph: GraphModule) -> None:
    """Write one entry of each row of zeros as a comparison with the numbers of all its entries.

    The gradient of picking a label's log-probability is one. A comparison joins the arithmetic
    about it in one loop, where a scatter needs memory of its own. Labels out of range still fail:
    in the picking itself.
    """
    nodes = graph.graph
    for node in nodes.find_nodes(op="call_function", target=aten.scatter_add.default):
        zeros, dim, index, source = node.args
        shape, picked = zeros.meta["val"].shape, [*index.meta["val"].shape]
        dim %= len(shape)
        size = shape[dim]
        rows = [*shape[:dim], 1, *shape[dim + 1 :]]
        known_zero = zeros.target is aten.new_zeros.default
        if not known_zero or size > FEW or picked != rows or [*source.meta["val"].shape] != rows:
            continue
        like = zeros.meta["val"]
        along = [size if place == dim else 1 for place in range(len(shape))]
        with nodes.inserting_before(node):
            numbers = nodes.call_function(
                aten.arange.default, (size,), {"dtype": torch.int64, "device": like.device}
            )
            numbers = nodes.call_function(aten.reshape.default, (numbers, along))
            hit = nodes.call_function(aten.eq.Tensor, (numbers, index))
            zero = nodes.call_function(
                aten.full.default, ([], 0.0), {"dtype": like.dtype, "device": like.device}
            )
            spread = nodes.call_function(aten.where.self, (hit, source, zero))
        node.replace_all_uses_with(spread)
        nodes.erase_node(node)
    graph.recompile()


def _turn(graph: GraphModule, product: Node) -> None:
    with graph.graph.inserting_before(product):
        left, right = (
            graph.graph.call_function(aten.transpose.int, (factor, 1, 2)) for factor in product.args
        )
        turned = graph.graph.call_function(aten.bmm.default, (right, left))
        result = graph.graph.call_function(aten.transpose.int, (turned, 1, 2))
    product.replace_all_uses_with(result)
    graph.graph.erase_node(product)


def _allow_any_strides(graph: GraphModule) -> None:
    """Views of what now lies in memory otherwise may need a copy, which a reshape makes."""
    for target in (aten.view.default, aten._unsafe_view.default):
        for node in graph.graph.find_nodes(op="call_function", target=target):
            node.target = aten.reshape.default
