"""Weights that a pretrained module's checkpoint did not have, noticed before they pass for some.

transformers marks what it read, tensor by tensor, and what it initialised, module by module, from
version 5 on. Older ones leave no record in the module, only a line in the log, and nothing is
noticed then.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import nn

from ppl_fe.networks.matching import listed

MARK = "_is_hf_initialized"


def fresh_weights(module: nn.Module) -> tuple[str, ...]:
    """List the parameters that `from_pretrained` of transformers had to make up.

    Args:
        module: any; one that was not made by it has none.

    Example:
        >>> fresh_weights(nn.Linear(1, 1))
        ()
    """
    named = dict(module.named_parameters())
    if not any(getattr(parameter, MARK, False) for parameter in named.values()):
        return ()
    return tuple(
        name
        for name, parameter in named.items()
        if not getattr(parameter, MARK, False)
        # Layers that were put around or into a pretrained module are their maker's business.
        and getattr(module.get_submodule(name.rpartition(".")[0]), MARK, False)
    )


def warn_of_fresh_weights(fresh: Sequence[str], names: Sequence[str], head: Sequence[str]) -> None:
    """Warn of fresh weights that are not said to be a head.

    Args:
        fresh: names of the fresh ones.
        names: of all parameters.
        head: of those in the head.
    """
    forgotten = [name for name in fresh if name not in head]
    if not forgotten:
        return
    prefixes = list(dict.fromkeys(_prefix(name, fresh, names) for name in fresh))
    given = repr(prefixes[0] if len(prefixes) == 1 else prefixes)
    warnings.warn(
        f"{listed(forgotten)}: not in the checkpoint that from_pretrained read, so these weights "
        f"are random and no pretrained values to start from. Give head={given}, or load weights "
        "for them first",
        UserWarning,
        stacklevel=2,
    )


def _prefix(name: str, fresh: Sequence[str], names: Sequence[str]) -> str:
    """Give the shortest prefix of a fresh name under which all are fresh.

    Example:
        >>> names = ["body.a.weight", "body.b.weight", "body.b.bias"]
        >>> _prefix("body.b.bias", names[1:], names)
        'body.b'
    """
    path = name.split(".")
    for end in range(1, len(path)):
        prefix = ".".join(path[:end])
        if all(other in fresh for other in names if other.startswith(f"{prefix}.")):
            return prefix
    return name
