"""Apply a function of one chain to all chains, and differentiate it, in the way a program allows.

`torch.func` batches most programs over chains and differentiates them. It refuses control flow that
depends on what differs between chains, autograd functions of the old form, calls of autograd within
the program, and operations that nobody has written a batched form for. Such programs run one chain
after another, the last resort being plain autograd, which takes all that Pyro's own kernels take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class Way(NamedTuple):
    """How a program is run.

    vectorized: batched over chains by `vmap`, otherwise chain after chain. functional: by
    `torch.func`, otherwise by plain autograd. traceable: its step makes one graph.
    """

    vectorized: bool = True
    functional: bool = True
    traceable: bool = True


def over_chains(
    function: Callable[..., Any],
    *arguments: Any,
    in_dims: tuple[int | None, ...],
    vectorized: bool = True,
) -> Any:
    """Apply a function of one chain to all, by `vmap` or chain after chain.

    Args:
        function: of one chain.
        *arguments: trees of tensors.
        in_dims: for each argument 0 if it has a leading chain dimension, as the results have,
            and None if all chains share it. A list with one entry a chain, whose shapes may
            differ, is gone through chain after chain.
        vectorized: whether by `vmap`. Default True.

    Example:
        >>> over_chains(torch.add, torch.zeros(2), torch.ones(()), in_dims=(0, None))
        tensor([1., 1.])
    """
    if vectorized and not any(isinstance(argument, list) for argument in arguments):
        with without_fallback_warnings():
            return torch.func.vmap(function, in_dims=in_dims, randomness="error")(*arguments)
    chained = [a for a, dim in zip(arguments, in_dims, strict=True) if dim == 0]
    results = []
    for chain in range(len(pytree.tree_leaves(chained)[0])):
        own = [
            argument if dim is None else _of_chain(argument, chain)
            for argument, dim in zip(arguments, in_dims, strict=True)
        ]
        results.append(function(*own))
    return pytree.tree_map(lambda *values: torch.stack(values), *results)


_inside = 0  # calls of `vmap` within each other


@contextmanager
def without_fallback_warnings() -> Iterator[None]:
    """Keep torch from asking users for bug reports on operations that it batches by a loop.

    Filters of Python's warnings would show all other ones anew in every step.
    """
    global _inside
    switch: Any = torch._C._functorch._set_vmap_fallback_warning_enabled  # type: ignore[attr-defined]
    _inside += 1
    switch(False)
    try:
        yield
    finally:
        _inside -= 1
        switch(_inside == 0)


def _of_chain(argument: Any, chain: int) -> Any:
    if isinstance(argument, list):
        return argument[chain]
    return pytree.tree_map(itemgetter(chain), argument)


def gradient_of(
    function: Callable[..., tuple[Tensor, Any]], *, functional: bool
) -> Callable[..., tuple[Tensor, Any]]:
    """Differentiate (point, ...) -> (value, more) with respect to the point.

    Args:
        function: gives a scalar, and a tree of tensors that are returned as they are.
        functional: whether by `torch.func`.

    Returns:
        (point, ...) -> (gradient, more).

    Example:
        >>> square = gradient_of(lambda x: (x @ x, x.sum()), functional=False)
        >>> square(torch.ones(2))
        (tensor([2., 2.]), tensor(2.))
    """
    if functional:
        found: Callable[..., tuple[Tensor, Any]] = torch.func.grad(function, has_aux=True)
        return found

    def plain(point: Tensor, *arguments: Any) -> tuple[Tensor, Any]:
        with torch.enable_grad():
            leaf = point.detach().requires_grad_()
            value, more = function(leaf, *arguments)
            slope = torch.zeros_like(leaf)
            if value.requires_grad:
                (slope,) = torch.autograd.grad(value, leaf, materialize_grads=True)
        return slope, pytree.tree_map(Tensor.detach, more)

    return plain


def hessian_of(function: Callable[[Tensor], Tensor], point: Tensor, *, functional: bool) -> Tensor:
    """Compute the Hessian (D, D) of a scalar function at a point (D,), reverse over reverse.

    Forward mode would promote dtypes in some densities.

    Example:
        >>> hessian_of(lambda x: x[0] * x[1], torch.ones(2), functional=False)
        tensor([[0., 1.],
                [1., 0.]])
    """
    if functional:
        both: Tensor = torch.func.jacrev(torch.func.grad(function))(point)
        return both
    found: Tensor = torch.autograd.functional.hessian(function, point)  # type: ignore[no-untyped-call]
    return found
