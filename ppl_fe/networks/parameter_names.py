"""Which of a module's parameters are meant: by names, patterns, a predicate, or one word."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from ppl_fe.arguments import did_you_mean
from ppl_fe.networks.matching import listed, tied_names

# Names or patterns of parameters, one or several; a predicate of a name; None for all of them.
Parameters = str | Iterable[str] | Callable[[str], bool] | None
LINEAR = "linear"


def chosen_names(module: nn.Module, parameters: Parameters) -> set[str]:
    """Find the parameters that are meant, each under the first of its names.

    Args:
        module: any.
        parameters: a name of a parameter (any of a tied one's) or of a module, with all below it;
            a pattern of names, in which ``*`` stands for any text; several of these; "linear", the
            `linear_weights`; a predicate of a name; or None, all of them.

    Raises:
        TypeError: something else.
        ValueError: a name or a pattern that matches nothing; none chosen.

    Example:
        >>> module = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
        >>> sorted(chosen_names(module, "body"))
        ['body.bias', 'body.weight']
        >>> sorted(chosen_names(module, "*.bias"))
        ['body.bias', 'head.bias']
        >>> chosen_names(module, "boddy.weight")
        Traceback (most recent call last):
        ValueError: parameters: 'boddy.weight' matches none; did you mean 'body.weight'?
    """
    own = {name for name, _ in module.named_parameters()}
    first = {name: to for name, to in tied_names(module).items() if to in own}
    if parameters is None:
        return own
    if callable(parameters):
        names = {name for name in first if parameters(name)}
    else:
        texts = [parameters] if isinstance(parameters, str) else list(parameters)
        if odd := [text for text in texts if not isinstance(text, str)]:
            raise TypeError(f"parameters must be names, patterns or a predicate, got {odd[0]!r}")
        found = {text: _meant(module, text, first) for text in texts}
        if unknown := [text for text, meant in found.items() if not meant]:
            raise ValueError(_no_match(unknown, list(first)))
        names = {name for meant in found.values() for name in meant}
    if not names:
        raise ValueError(f"parameters chooses none of: {listed(list(first))}")
    return {first[name] for name in names}


def linear_weights(module: nn.Module) -> list[str]:
    """List the weights that an adapter of peft can hold: those of plain linear layers.

    Left out are layers of a class of their own (the output of ``nn.MultiheadAttention``) and those
    below ``nn.TransformerEncoderLayer``, whose weights are read without a call of the layer, and
    weights that are tied to another tensor, which an adapter would not change with them.

    Example:
        >>> linear_weights(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
        ['0.weight']
    """
    first = tied_names(module)
    shared = {to for name, to in first.items() if name != to}
    fast = tuple(f"{name}." if name else "" for name, part in module.named_modules() if reads(part))
    plain = [
        f"{name}.weight" if name else "weight"
        for name, layer in module.named_modules()
        if type(layer) is nn.Linear and not (fast and name.startswith(fast))
    ]
    return [name for name in plain if first.get(name) == name and name not in shared]


def reads(layer: nn.Module) -> bool:
    """Recognise a layer that reads the weights of linear layers below it without calling them."""
    return isinstance(layer, nn.TransformerEncoderLayer)


def _meant(module: nn.Module, text: str, names: Collection[str]) -> list[str]:
    """List the names that one text stands for."""
    if text == LINEAR:
        return linear_weights(module)
    if text in names:
        return [text]
    return [name for name in names if name.startswith(f"{text}.") or fnmatchcase(name, text)]


def _no_match(unknown: Sequence[str], names: Sequence[str]) -> str:
    """Say which texts match nothing, and what was meant by the first."""
    text = unknown[0]
    if text == LINEAR:
        return "parameters='linear': the module has no weight of a plain nn.Linear"
    inside = [name for name in names if text in name.split(".")]
    paths = [name.split(".") for name in names]
    parts = [".".join(path[:end]) for path in paths for end in range(1, len(path) + 1)]
    instead = (
        (f"'*{text}*' would match {len(inside)}, {inside[0]} among them" if inside else "")
        or did_you_mean(text, [*parts, LINEAR])
        or f"there are: {listed(names)}"
    )
    match = "match" if len(unknown) > 1 else "matches"
    return f"parameters: {listed([repr(one) for one in unknown])} {match} none; {instead}"
