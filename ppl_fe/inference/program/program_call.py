"""A program with its arguments, for whose tensors others may be put in."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


class ProgramCall:
    """A program with its arguments, for whose tensors others may be put in.

    Args:
        model: a Pyro program.
        args: its positional arguments.
        kwargs: its keyword arguments.

    Attributes:
        leaves: all arguments, those within lists and mappings one by one.
        tensors: the tensors among them.
        names: what messages call those.
    """

    def __init__(
        self, model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        self.model = model
        paths, self._structure = pytree.tree_flatten_with_path((tuple(args), dict(kwargs)))
        self.leaves = [leaf for _, leaf in paths]
        self._paths: list[tuple[Any, ...]] = [path for path, _ in paths]
        self._places = [k for k, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor)]
        self.names = [argument_name(self._paths[k]) for k in self._places]
        self.tensors: tuple[Tensor, ...] = tuple(self.leaves[k].detach() for k in self._places)

    def __call__(self, tensors: Sequence[Tensor], more: Mapping[str, Any]) -> Any:
        """Call the program with these tensors in place of its own, and with more keywords."""
        leaves = list(self.leaves)
        for place, tensor in zip(self._places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self._structure)
        return self.model(*args, **kwargs, **more)

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Give the positional and the keyword arguments."""
        args, kwargs = pytree.tree_unflatten(self.leaves, self._structure)
        return args, kwargs

    @property
    def variables(self) -> list[str]:
        """Name each of `tensors` by the parameter that it was given for, and its place in it.

        Example:
            >>> import torch
            >>> def model(x, *more):
            ...     pass
            >>> one = torch.ones(1)
            >>> ProgramCall(model, ({"a": one}, one), {}).variables
            ['x.a', 'more.0']
        """
        try:
            called = getattr(self.model, "forward", self.model)  # a module takes what forward does
            parameters = [*inspect.signature(called).parameters.values()]
        except (TypeError, ValueError):  # of a program without a signature
            parameters = []
        several = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.KEYWORD_ONLY
        positional = [p.name for p in parameters if p.kind not in (*several, p.VAR_KEYWORD)]
        rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "argument")
        named = []
        for place in self._places:
            kind, first, *within = self._paths[place]
            if kind.idx == 1:
                own = [str(first.key)]
            elif first.idx < len(positional):
                own = [positional[first.idx]]
            else:
                own = [rest, str(first.idx - len(positional))]
            own += [str(getattr(step, "key", getattr(step, "idx", ""))) for step in within]
            named.append(".".join(own).replace("/", "."))
        return named


def argument_name(path: tuple[Any, ...]) -> str:
    """Name an argument, or what lies within one, by its path in (args, kwargs)."""
    own = path[1].idx if path[0].idx == 0 else repr(path[1].key)
    return f"argument {own}{pytree.keystr(path[2:])}"
