"""Rewrite a traced graph so that it runs faster; the function that it computes stays the same."""

from __future__ import annotations

from itertools import count

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

aten = torch.ops.aten

# Matrix products of fewer columns than this run at a quarter of the speed on a processor, whose
# vectors of 16 numbers lie along the columns.
NARROW = 16
# Up to so many classes a pass over all of them is faster than a write to one.
FEW = 64


def inline_literals(graph: GraphModule) -> None:
    """Replace tensors that the program itself wrote (a prior's scale, say) by numbers.

    As attributes they are inputs of the compiled kernel, which would compute their logarithms and
    quotients for every vector of coordinates; numbers are folded beforehand.
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


def replace_masks(graph: GraphModule) -> None:
    """Replace constant boolean masks by the integer indices they select.

    Triangles of matrices (a Cholesky factor's map from a vector) are selected by masks. The number
    of entries that a mask selects is no shape that the compiler knows; that of indices is.
    """
    known = _changing(graph)
    targets = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
    for target in targets:
        for node in graph.graph.find_nodes(op="call_function", target=target):
            indices: list[Node | None] = []
            for index in node.args[1]:
                is_mask = index is not None and index.meta["val"].dtype == torch.bool
                mask = _constant(graph, index, known) if is_mask else None
                if mask is None:
                    indices.append(index)
                else:
                    places = mask.nonzero(as_tuple=True)
                    indices += [_attribute(graph, node, place) for place in places]
            node.update_arg(1, indices)
    for node in graph.graph.find_nodes(op="call_function", target=aten.nonzero.default):
        mask = _constant(graph, node.args[0], known)
        if mask is not None:
            node.replace_all_uses_with(_attribute(graph, node, mask.nonzero()))
            graph.graph.erase_node(node)
    graph.recompile()


def transpose_narrow_products(graph: GraphModule) -> None:
    """Rewrite a `bmm` with fewer than 16 columns as (BᵀAᵀ)ᵀ, which vectorises along its rows.

    The last layer of a classifier is such a product. The softmax after it then runs along the data
    rather than along the few classes: the step of benchmarks/step.py is 10 to 20 % faster.
    """
    found = False
    for node in graph.graph.find_nodes(op="call_function", target=aten.bmm.default):
        rows, columns = node.meta["val"].shape[1:]
        if not 1 < columns < NARROW <= rows:
            continue
        _transpose(graph, node)
        found = True
    if found:
        _allow_any_strides(graph)
    graph.recompile()


def replace_scatters(graph: GraphModule) -> None:
    """Replace a one-entry-per-row scatter by `where(arange == index, source, 0)`.

    The gradient of picking a label's log-probability is such a scatter. A comparison fuses with its
    neighbours into one loop, where a scatter needs separate memory. Labels out of range still fail
    where the log-probability is picked.
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


def with_constants(graph: GraphModule) -> GraphModule:
    """Copy a graph so that what no input changes is computed once and kept, not at every call.

    Of a graph that is run as it is that saves a tenth. Compiled code folds numbers into its loops,
    and would read these from memory.
    """
    copied, places = Graph(), dict[Node, Node]()
    copied.output(copied.graph_copy(graph.graph, places))
    own = GraphModule(graph, copied)
    known = _changing(own)
    for node in list(copied.nodes):
        value = _constant(own, node, known)
        if value is None or node.op == "get_attr":
            continue
        readers = [user for user in node.users if _constant(own, user, known) is None]
        if readers:
            kept = _attribute(own, node, value)
            for reader in readers:
                reader.replace_input_with(node, kept)
    copied.eliminate_dead_code()
    own.recompile()
    own.eval()
    return own


def _changing(graph: GraphModule) -> dict[Node, Tensor | None]:
    """Find the nodes whose memory some operation writes to, through a view of it as well.

    They are no constants, whatever they are made of: `zeros` may be a mask of its own by the time
    that it is read. Given as `_constant` knows them.
    """
    found: dict[Node, Tensor | None] = {}
    for node in reversed(graph.graph.nodes):
        if not isinstance(node.target, torch._ops.OpOverload):  # one of several views, say
            found |= dict.fromkeys(node.all_input_nodes if node in found else ())
            continue
        schema = node.target._schema
        if schema.is_mutable or node in found:
            # An argument with an alias is written to, or shares its memory with the result.
            aliased = [
                node.kwargs.get(argument.name, node.args[place : place + 1])
                for place, argument in enumerate(schema.arguments)
                if argument.alias_info is not None
            ]
            nodes = (given for given in pytree.tree_leaves(aliased) if isinstance(given, Node))
            found |= dict.fromkeys(nodes)
    return found


def _transpose(graph: GraphModule, product: Node) -> None:
    with graph.graph.inserting_before(product):
        left, right = (
            graph.graph.call_function(aten.transpose.int, (factor, 1, 2)) for factor in product.args
        )
        turned = graph.graph.call_function(aten.bmm.default, (right, left))
        result = graph.graph.call_function(aten.transpose.int, (turned, 1, 2))
    product.replace_all_uses_with(result)
    graph.graph.erase_node(product)


def _allow_any_strides(graph: GraphModule) -> None:
    """Replace views by reshapes, which copy where memory now lies in another order."""
    for target in (aten.view.default, aten._unsafe_view.default):
        for node in graph.graph.find_nodes(op="call_function", target=target):
            node.target = aten.reshape.default


def _constant(graph: GraphModule, node: Node, known: dict[Node, Tensor | None]) -> Tensor | None:
    """Return the value of a node that depends on no input; None for all others."""
    if node not in known:
        known[node] = _computed(graph, node, known)
    return known[node]


def _computed(graph: GraphModule, node: Node, known: dict[Node, Tensor | None]) -> Tensor | None:
    target = node.target
    if node.op == "get_attr":
        value = getattr(graph, str(target))
        return value if isinstance(value, Tensor) else None
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return None
    if torch.Tag.nondeterministic_seeded in target.tags:
        return None
    if any(_constant(graph, before, known) is None for before in node.all_input_nodes):
        return None
    args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
    found = target(*args, **kwargs)
    return found if isinstance(found, Tensor) else None


def _attribute(graph: GraphModule, before: Node, value: Tensor) -> Node:
    """Insert a node whose value is a tensor kept with the graph."""
    # A copy of a graph has some of the other's names, not always the first ones.
    name = next(name for k in count() if not hasattr(graph, name := f"_constant_{k}"))
    graph.register_buffer(name, value)
    with graph.graph.inserting_before(before):
        node = graph.graph.get_attr(name)
    node.meta["val"] = value
    return node
